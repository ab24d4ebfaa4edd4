"""The configuration of a training run; frozen."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from sae_training.frozen import FrozenConfig


class TrainConfig(FrozenConfig):
    """How a crosscoder is trained.

    Shares (``*_frac``) are of ``n_tokens``, so that a schedule does not depend on the batch size.

    Attributes:
        n_tokens: tokens to train on.
        batch_size: tokens per step; a batch of the stream may be smaller (the last one), never larger.
        accumulation: batches of the stream per optimizer step; the gradient is that of the mean loss over all their
            tokens, and a cut over the batch (batchtopk) is taken in each.
        precision: ``float32``, or ``bfloat16`` for the matrix products alone: weights, sums and losses stay float32.
        lr: peak learning rate of Adam.
        schedule: ``warmup_decay`` (ours: linear warm-up, constant, linear decay to 0) or ``constant`` (the paper's: the
            learning rate stays, lambda alone warms up).
        seed: for whoever makes the batches (mechprobe's train_crosscoder seeds its stream with it); the trainer itself
            draws nothing, and the weights have the seed of `CrosscoderConfig`.
        lr_warmup_frac: linear rise from 0.
        lr_decay_frac: linear fall to 0 at the end; constant between.
        adam_betas: Adam's moments.
        grad_clip: largest L2 norm of the gradient of all weights together; None leaves it.
        l1_coefficient: lambda of the l1 variant; the other variants do not use it.
        l0_coefficient: lambda of the jumprelu variant: what one active feature costs, in units of the squared error
            of one token; the other variants do not use it.
        l1_warmup_frac: linear rise of lambda from 0 (l1 and jumprelu).
        shared_penalty: share of lambda that features designated as shared pay.
        bandwidth: width of the window around a threshold, in units of the score, whose tokens move it (jumprelu).
        aux_coefficient: weight of the auxiliary loss on dead features (all variants but l1); 0 turns it off.
        aux_k: dead features that reconstruct the error, per token; None takes half the widest model.
        aux_batch_frac: share of a batch's tokens that the auxiliary loss looks at; its gradient reaches dead features
            alone, and a part of the batch revives them as well as all of it.
        dead_after_tokens: a feature is dead when it has not fired for so many tokens; None takes a twentieth of
            ``n_tokens``, at most ten million.
        refresh_dead_every: steps between looks at which features are dead, off the CPU (on a CPU every step looks).
        threshold_momentum: of the running mean of the batch threshold, which is used at inference.
        log_every: steps between lines of ``metrics.jsonl``.
        checkpoint_every: steps between checkpoints; 0 writes none.
        keep_checkpoints: how many of the latest checkpoints stay on disk.
        n_setup_batches: batches read ahead at the start, from which an unset scale and the biases are estimated
            (they are then trained on like every other batch).
        kernel: ``sparse`` works on the active features alone (on a GPU by Triton), ``dense`` on all; ``auto`` takes
            sparse as long as few enough features are active, and dense on a GPU without Triton (it warns). ``triton``
            is ``sparse`` on a GPU, and runs on a CPU in Triton's interpreter, for tests.
        sparse_below: share of active features up to which ``auto`` is sparse on a CPU.
        sparse_below_gpu: the same on a GPU. The default is the break-even of an H100's bfloat16 products
            (docs/kernels.md); l1 goes by the density of the latest log line.
    """

    n_tokens: int = Field(ge=1)
    batch_size: int = Field(default=2048, ge=1)
    accumulation: int = Field(default=1, ge=1)
    precision: Literal["float32", "bfloat16"] = "float32"
    lr: float = Field(default=1e-3, gt=0)
    seed: int = 0
    schedule: Literal["warmup_decay", "constant"] = "warmup_decay"
    lr_warmup_frac: float = Field(default=0.02, ge=0, le=1)
    lr_decay_frac: float = Field(default=0.2, ge=0, le=1)
    adam_betas: tuple[float, float] = (0.9, 0.999)
    grad_clip: float | None = Field(default=1.0, gt=0)
    l1_coefficient: float = Field(default=2.0, ge=0)
    l0_coefficient: float = Field(default=1.0, ge=0)
    l1_warmup_frac: float = Field(default=0.05, ge=0, le=1)
    shared_penalty: float = Field(default=0.15, ge=0, le=1)
    bandwidth: float = Field(default=2.0, gt=0)
    aux_coefficient: float = Field(default=1.0, ge=0)
    aux_k: int | None = Field(default=None, ge=1)
    aux_batch_frac: float = Field(default=0.25, gt=0, le=1)
    dead_after_tokens: int | None = Field(default=None, ge=1)
    refresh_dead_every: int = Field(default=20, ge=1)
    threshold_momentum: float = Field(default=0.98, ge=0, lt=1)
    log_every: int = Field(default=50, ge=1)
    checkpoint_every: int = Field(default=500, ge=0)
    keep_checkpoints: int = Field(default=1, ge=1)
    n_setup_batches: int = Field(default=4, ge=1)
    kernel: Literal["auto", "dense", "sparse", "triton"] = "auto"
    sparse_below: float = Field(default=0.06, ge=0, le=1)
    sparse_below_gpu: float = Field(default=0.0056, ge=0, le=1)

    @classmethod
    def paper(cls, **changes: Any) -> TrainConfig:
        """The setting of arXiv 2604.25011: 400M tokens, batch 1,024, constant learning rate 1e-4, lambda 2."""
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
                    f"schedule 'constant' has no {name} (it is {data[name]}); drop it or take schedule 'warmup_decay'"
                )
        return {**data, "lr_warmup_frac": 0.0, "lr_decay_frac": 0.0}

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(
                f"adam_betas = {list(self.adam_betas)} are not both at least 0 and below 1; try 0.9 and 0.999"
            )
        if self.lr_warmup_frac + self.lr_decay_frac > 1:
            raise ValueError(
                f"lr_warmup_frac = {self.lr_warmup_frac} and lr_decay_frac = {self.lr_decay_frac} are more than "
                "the whole run; lower one"
            )
        return self

    @property
    def step_tokens(self) -> int:
        """Tokens of a full optimizer step."""
        return self.batch_size * self.accumulation

    @property
    def dead_window(self) -> int:
        """Tokens without firing after which a feature counts as dead."""
        if self.dead_after_tokens is not None:
            return self.dead_after_tokens
        return min(10_000_000, max(self.step_tokens, self.n_tokens // 20))

    def lr_at(self, n_tokens_seen: int) -> float:
        """The learning rate of the step that begins after so many tokens."""
        progress = n_tokens_seen / self.n_tokens
        # The first step of a warm-up would have rate 0 and be lost: the rate is that of the step's end.
        end = min(1.0, (n_tokens_seen + self.step_tokens) / self.n_tokens)
        rise = end / self.lr_warmup_frac if self.lr_warmup_frac else 1.0
        fall = (1.0 - progress) / self.lr_decay_frac if self.lr_decay_frac else 1.0
        return self.lr * max(0.0, min(1.0, rise, fall))

    def l1_at(self, n_tokens_seen: int) -> float:
        """Lambda of the l1 variant in the step that begins after so many tokens."""
        return self.l1_coefficient * self._lambda_rise(n_tokens_seen)

    def l0_at(self, n_tokens_seen: int) -> float:
        """Lambda of the jumprelu variant in the step that begins after so many tokens."""
        return self.l0_coefficient * self._lambda_rise(n_tokens_seen)

    def _lambda_rise(self, n_tokens_seen: int) -> float:
        if not self.l1_warmup_frac:
            return 1.0
        return min(1.0, n_tokens_seen / (self.l1_warmup_frac * self.n_tokens))
