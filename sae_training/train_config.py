"""The configuration of a training run; frozen."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, model_serializer, model_validator

from sae_training.frozen import FrozenConfig

Divide = Literal["latents", "tokens"]


class SharedTrainConfig(FrozenConfig):
    """Settings that the training of a crosscoder and of an SAE of one model share.

    The shares of a schedule (``lr_*_frac``) refer to ``n_tokens``, so they do not depend on the batch size.

    Attributes:
        n_tokens: Tokens to train on; the last batch is used whole.
        batch_size: Tokens per batch. A batch of the stream may be smaller, but not larger.
        lr: Peak learning rate of Adam.
        lr_warmup_frac: Share in which the learning rate rises linearly from 0.
        lr_decay_frac: Share, at the end, in which the learning rate falls linearly to 0.
        adam_betas: Decay rates of the moments of Adam.
        aux_coefficient: Weight of the auxiliary loss on dead latents (not for variant l1); 0 disables it.
        threshold_momentum: Momentum of the running mean of the batch threshold, which inference uses.
        n_setup_batches: Batches read ahead to set the initial biases and an unset scale; training uses them too.
        log_every: Number of steps between reports of the losses, for a crosscoder lines of ``metrics.jsonl``.
    """

    n_tokens: int = Field(ge=1)
    batch_size: int = Field(default=2048, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    lr_warmup_frac: float = Field(default=0.02, ge=0, le=1)
    lr_decay_frac: float = Field(default=0.2, ge=0, le=1)
    adam_betas: tuple[float, float] = (0.9, 0.999)
    aux_coefficient: float = Field(default=1.0, ge=0)
    threshold_momentum: float = Field(default=0.98, ge=0, lt=1)
    n_setup_batches: int = Field(default=4, ge=1)
    log_every: int = Field(default=50, ge=1)

    @model_validator(mode="after")
    def _check(self) -> "SharedTrainConfig":
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(
                f"adam_betas = {list(self.adam_betas)} must lie in [0, 1); the usual values are 0.9 and 0.999"
            )
        if self.lr_warmup_frac + self.lr_decay_frac > 1:
            raise ValueError(
                f"lr_warmup_frac = {self.lr_warmup_frac} and lr_decay_frac = {self.lr_decay_frac} add up to more "
                "than 1; lower one"
            )
        return self


class TrainConfig(SharedTrainConfig):
    """Settings of a training run; `SharedTrainConfig` describes those that are not listed here.

    Attributes:
        accumulation: Batches per optimizer step. The gradient is that of the mean loss over all their tokens; the cut
            of batchtopk is found in each batch.
        precision: ``float32``, or ``bfloat16`` for the operands of the matrix products. Weights, sums and losses stay
            in float32.
        schedule: ``warmup_decay`` is linear warm-up, constant, linear decay to 0 (own choice). ``constant`` keeps the
            learning rate and warms up only lambda, as in arXiv 2604.25011.
        seed: Seed for the code that makes the batches, such as mechprobe's train_crosscoder. The trainer draws no
            random numbers, and the initial weights depend on the seed of `CrosscoderConfig`.
        grad_clip: Largest L2 norm of the gradient of all weights together; None disables clipping.
        l1_coefficient: Lambda of the l1 variant; other variants ignore it.
        l0_coefficient: Lambda of the jumprelu variant: the cost of one active latent, in units of the squared error of
            one token. Other variants ignore it.
        l1_warmup_frac: Share of ``n_tokens`` in which lambda rises linearly from 0 (l1 and jumprelu).
        shared_penalty: Share of lambda that applies to latents designated as shared.
        delta_coefficient: Weight of the squared error of the *differences* between the models: the delta loss of
            arXiv 2603.04426, as `sae_training.step` states it. 0 leaves it out. The cost is that of one more pass over the
            error.
        bandwidth: Width of the window around a threshold, in units of the score (jumprelu). Tokens whose score lies in
            it move the threshold.
        aux_k: Number of dead latents per token that reconstruct the error; None means half the width of the widest
            model.
        aux_batch_frac: Share of the tokens of a batch that the auxiliary loss uses. The loss reaches only dead latents,
            and a part of the batch revives them as well as the whole batch.
        dead_after_tokens: Number of tokens without firing after which a latent is dead; None means a twentieth of
            ``n_tokens``, but at most ten million.
        refresh_dead_every: Number of steps after which a GPU run determines the dead latents again; a CPU run does so
            in every step.
        checkpoint_every: Number of steps between checkpoints; 0 writes none.
        keep_checkpoints: Number of checkpoints that stay on disk, the latest ones.
        kernel: ``sparse`` computes with the active latents only (on a GPU with Triton), ``dense`` with all latents.
            ``auto`` chooses sparse while few enough latents are active, but dense on a GPU without Triton, with a
            warning. ``triton`` is ``sparse`` on a GPU, and runs in Triton's interpreter on a CPU, for tests.
        sparse_below: Share of active latents up to which ``auto`` is sparse on a CPU.
        sparse_below_gpu: Share of active latents up to which ``auto`` is sparse on a GPU. The default is the break-even
            point of bfloat16 products on an H100 (docs/kernels.md). l1 uses the density of the latest log line.
        divide: What several processes divide: the ``latents``, so that memory and work per process shrink, or the ``tokens``
            of each batch, with the whole dictionary in every process. It is no part of a run's settings: a run resumes
            with another value, and with any number of processes.
    """

    accumulation: int = Field(default=1, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 0
    schedule: Literal["warmup_decay", "constant"] = "warmup_decay"
    grad_clip: float | None = Field(default=1.0, gt=0)
    l1_coefficient: float = Field(default=2.0, ge=0)
    l0_coefficient: float = Field(default=1.0, ge=0)
    l1_warmup_frac: float = Field(default=0.05, ge=0, le=1)
    shared_penalty: float = Field(default=0.15, ge=0, le=1)
    delta_coefficient: float = Field(default=0.0, ge=0)
    bandwidth: float = Field(default=2.0, gt=0)
    aux_k: int | None = Field(default=None, ge=1)
    aux_batch_frac: float = Field(default=0.25, gt=0, le=1)
    dead_after_tokens: int | None = Field(default=None, ge=1)
    refresh_dead_every: int = Field(default=20, ge=1)
    checkpoint_every: int = Field(default=500, ge=0)
    keep_checkpoints: int = Field(default=1, ge=1)
    kernel: Literal["auto", "dense", "sparse", "triton"] = "auto"
    sparse_below: float = Field(default=0.06, ge=0, le=1)
    sparse_below_gpu: float = Field(default=0.0056, ge=0, le=1)
    divide: Divide = Field(default="latents", exclude=True)

    @classmethod
    def paper(cls, **changes: Any) -> "TrainConfig":
        """The settings of arXiv 2604.25011: 400M tokens, batch 1,024, constant learning rate 1e-4, lambda 2."""
        preset = {"n_tokens": 400_000_000, "batch_size": 1024, "lr": 1e-4, "schedule": "constant"}
        return cls(**{**preset, "l1_coefficient": 2.0, "l1_warmup_frac": 0.05, **changes})

    @model_validator(mode="before")
    @classmethod
    def _constant_has_no_slopes(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("schedule") != "constant":
            return data
        for name in ("lr_warmup_frac", "lr_decay_frac"):
            if data.get(name):
                raise ValueError(
                    f"schedule 'constant' does not use {name} = {data[name]}; remove it or use schedule 'warmup_decay'"
                )
        return {**data, "lr_warmup_frac": 0.0, "lr_decay_frac": 0.0}

    @model_serializer(mode="wrap")
    def _leave_out_unused(self, serialize: Callable[["TrainConfig"], dict[str, Any]]) -> dict[str, Any]:
        """Leave out what is not in use, so that a training of a release without the setting resumes."""
        return {key: value for key, value in serialize(self).items() if value or key != "delta_coefficient"}

    @property
    def step_tokens(self) -> int:
        """Tokens per full optimizer step."""
        return self.batch_size * self.accumulation

    @property
    def trained_tokens(self) -> int:
        """Tokens of all steps: ``n_tokens``, up to a full step."""
        return -(-self.n_tokens // self.step_tokens) * self.step_tokens

    @property
    def dead_window(self) -> int:
        """Number of tokens without firing after which a latent is dead."""
        if self.dead_after_tokens is not None:
            return self.dead_after_tokens
        return min(10_000_000, max(self.step_tokens, self.n_tokens // 20))

    def lr_at(self, n_tokens_seen: int) -> float:
        """Learning rate of the step that starts after ``n_tokens_seen`` tokens."""
        progress = n_tokens_seen / self.n_tokens
        # At the start of the first step the rate would be 0 and the step would be lost, so use the rate at its end.
        end = min(1.0, (n_tokens_seen + self.step_tokens) / self.n_tokens)
        rise = end / self.lr_warmup_frac if self.lr_warmup_frac else 1.0
        fall = (1.0 - progress) / self.lr_decay_frac if self.lr_decay_frac else 1.0
        return self.lr * max(0.0, min(1.0, rise, fall))

    def l1_at(self, n_tokens_seen: int) -> float:
        """Lambda of the l1 variant in the step that starts after ``n_tokens_seen`` tokens."""
        return self.l1_coefficient * self._lambda_rise(n_tokens_seen)

    def l0_at(self, n_tokens_seen: int) -> float:
        """Lambda of the jumprelu variant in the step that starts after ``n_tokens_seen`` tokens."""
        return self.l0_coefficient * self._lambda_rise(n_tokens_seen)

    def _lambda_rise(self, n_tokens_seen: int) -> float:
        if not self.l1_warmup_frac:
            return 1.0
        return min(1.0, n_tokens_seen / (self.l1_warmup_frac * self.n_tokens))
