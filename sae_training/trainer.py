"""One step after another: the trainer knows tensors and counters, no files and no streams."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from sae_training.checkpoint import TrainState
from sae_training.config import TrainConfig
from sae_training.crosscoder import Crosscoder, dedicated_mask, mean_norm_scale
from sae_training.errors import SaeTrainingError
from sae_training.evaluation import batch_fve
from sae_training.kernels.backend import choose_backend
from sae_training.selection import Selector
from sae_training.step import Parameters, StepOutput, StepWeights, loss_and_gradients
from sae_training.stream import batch_digest


class Trainer:
    """Trains a crosscoder batch by batch; `sae_training.train` adds the stream, the files and the resume.

    Attributes:
        crosscoder: trained in place.
        config: how.
        state: optimizer and counters, all that the next step depends on beside the crosscoder's tensors.
    """

    def __init__(self, crosscoder: Crosscoder, config: TrainConfig) -> None:
        self._backend = choose_backend(config.kernel, crosscoder.device)
        self.crosscoder = crosscoder
        self.config = config
        parameters = Parameters(
            crosscoder.encoder,
            crosscoder.decoder,
            nn.Parameter(crosscoder.b_enc.detach().clone()),
            nn.Parameter(crosscoder.b_dec_flat.detach().clone()),
            crosscoder.config.widths,
            crosscoder.config.prefix_ends,
        )
        # A fused update halves the passes over memory on CPU and GPU alike.
        optimizer = torch.optim.Adam(parameters.all(), lr=config.lr, betas=config.adam_betas, fused=True)
        fired = torch.zeros(crosscoder.d_sae, dtype=torch.int64, device=crosscoder.device)
        self.state = TrainState(parameters, torch.zeros_like(crosscoder.b_dec_flat), optimizer, fired)
        self.selector = Selector(crosscoder.variant, crosscoder.config.k, self._backend or "embedding_bag")
        if config.kernel in ("sparse", "triton") and not self.selector.has_sparse_step:
            raise SaeTrainingError(
                f"variant {crosscoder.variant.name!r} has no sparse step on {crosscoder.device}; "
                f"take kernel 'auto' or 'dense', not {config.kernel!r}."
            )
        self._aux = config.aux_coefficient if crosscoder.variant.has_dead_feature_loss else 0.0
        self._aux_k = config.aux_k or max(1, max(crosscoder.config.widths) // 2)
        mask = dedicated_mask(crosscoder.config)
        self._mask = None if mask is None else mask.to(crosscoder.decoder)
        self._aux_stride = round(1 / config.aux_batch_frac)

    @torch.no_grad()
    def set_up(self, batches: list[Tensor]) -> None:
        """Start from raw batches: an unset scale, biases that explain the mean, and the encoder's gain."""
        crosscoder, state = self.crosscoder, self.state
        flat = [crosscoder.flatten(batch) for batch in batches]
        for number, batch in enumerate(flat):
            require_finite(batch, f"batch {number}")
        if not crosscoder.has_scale:
            crosscoder.set_scale(mean_norm_scale(torch.cat(flat).float(), crosscoder.config.widths))
        state.center.copy_(crosscoder.scaled(torch.cat(flat)).double().mean(dim=0))
        state.parameters.b_enc.zero_()
        state.parameters.b_dec.zero_()
        if not crosscoder.variant.has_l1_penalty:
            crosscoder.encoder.mul_(self._gain(self._centered(flat[0])))
        self._write_biases()

    def _centered(self, batch: Tensor) -> Tensor:
        return self.crosscoder.scaled(batch).sub_(self.state.center)

    def _gain(self, x: Tensor) -> float:
        """The factor of the encoder with which the first reconstruction fits best (least squares)."""
        parameters = self.state.parameters
        norm = self.crosscoder.feature_norm()
        scores = self.selector.scores(x, parameters.encoder, parameters.b_enc, norm)
        active, _ = self.selector.select(scores, norm, sparse=self._sparse())
        self.selector.last_cut = None
        explained = active.decode(parameters.decoder)
        total, product = float(explained.square().sum()), float((x * explained).sum())
        return product / total if total > 0 and product > 0 else 1.0

    @torch.no_grad()
    def _write_biases(self) -> None:
        """Give the crosscoder the biases of activations that are not centered."""
        parameters, center = self.state.parameters, self.state.center
        self.crosscoder.b_enc.copy_(parameters.b_enc - parameters.encoder @ center)
        self.crosscoder.b_dec_flat.copy_(parameters.b_dec + center)

    def step(self, batch: Tensor) -> StepOutput:
        """Train on one batch of raw activations.

        Raises:
            SaeTrainingError: when the loss is not finite; the weights are then as before the step.
        """
        config, state = self.config, self.state
        weights = StepWeights(
            l1=config.l1_at(state.n_tokens), aux=self._aux, aux_k=self._aux_k, aux_stride=self._aux_stride
        )
        dead = state.tokens_since_fired >= config.dead_window
        output = loss_and_gradients(
            state.parameters, self._centered(batch), self.selector, weights, dead=dead, sparse=self._sparse()
        )
        if self._mask is not None:
            for weight in (state.parameters.encoder, state.parameters.decoder):
                if weight.grad is not None:
                    weight.grad.mul_(self._mask)
        gradient_norm = nn.utils.get_total_norm([p.grad for p in state.parameters.all() if p.grad is not None])
        self._require_finite(output, gradient_norm, batch)
        if config.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(state.parameters.all(), config.grad_clip, gradient_norm)
        for group in state.optimizer.param_groups:
            group["lr"] = config.lr_at(state.n_tokens)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        self._write_biases()
        self._count(output, batch)
        return output

    def metrics(self, output: StepOutput) -> dict[str, Any]:
        """What there is to say about the latest step, ``output``."""
        state, crosscoder, config = self.state, self.crosscoder, self.config
        n_before = state.n_tokens - output.x.shape[0]
        fve = batch_fve(output.x, output.error, crosscoder.config.widths)
        l0 = float(output.active.column_count().sum()) / output.x.shape[0]
        if crosscoder.variant.has_l1_penalty and crosscoder.device.type != "cpu":
            state.density = l0 / crosscoder.d_sae
        return {
            "step": state.step,
            "tokens": state.n_tokens,
            "lr": config.lr_at(n_before),
            "loss": float(output.loss),
            "mse": float(output.mse),
            "aux": float(output.aux),
            "penalty": float(output.penalty),
            "l1_coefficient": config.l1_at(n_before) if crosscoder.variant.has_l1_penalty else 0.0,
            "l0": l0,
            "fve": {  # None where a model's activation is constant in the batch: JSON has no NaN
                name: value if math.isfinite(value) else None
                for name, value in zip(crosscoder.model_names, fve.tolist(), strict=True)
            },
            "dead_frac": float((state.tokens_since_fired >= config.dead_window).double().mean()),
            "threshold": float(crosscoder.threshold),
            "distinct_batches": int(state.digests.unique().numel()),
        }

    def _sparse(self) -> bool:
        if self._backend is None or not self.selector.has_sparse_step:
            return False
        if self.config.kernel != "auto":
            return True
        known = self.crosscoder.config.k / self.crosscoder.d_sae
        density = self.state.density if self.crosscoder.variant.has_l1_penalty else known
        on_gpu = self._backend == "triton"
        return density <= (self.config.sparse_below_gpu if on_gpu else self.config.sparse_below)

    def _count(self, output: StepOutput, batch: Tensor) -> None:
        state, config = self.state, self.config
        n_rows = batch.shape[0]
        counts = output.active.column_count()
        state.tokens_since_fired = torch.where(counts > 0, 0, state.tokens_since_fired + n_rows)
        if output.cut is not None:
            # A plain mean until it spans as many batches as the running mean does.
            momentum = min(config.threshold_momentum, state.n_cuts / (state.n_cuts + 1))
            self.crosscoder.threshold.mul_(momentum).add_(output.cut.double() * (1 - momentum))
            state.n_cuts += 1
        state.last_cut = self.selector.last_cut
        # Off the CPU this would wait for the device: `metrics` does, and takes the density along.
        if self.crosscoder.variant.has_l1_penalty and self.crosscoder.device.type == "cpu":
            state.density = float(counts.sum()) / (n_rows * self.crosscoder.d_sae)
        state.digests = torch.cat((state.digests, batch_digest(batch).reshape(1).cpu()))
        state.step += 1
        state.n_tokens += n_rows

    def _require_finite(self, output: StepOutput, gradient_norm: Tensor, batch: Tensor) -> None:
        loss, gradient, decoder = torch.stack((output.loss, gradient_norm, output.norm_sum)).tolist()
        if math.isfinite(loss) and math.isfinite(gradient) and math.isfinite(decoder):
            return
        step = self.state.step + 1
        require_finite(self.crosscoder.flatten(batch), f"batch {step - 1}")
        raise SaeTrainingError(
            f"step {step} is not finite (loss {loss:g}, gradient norm {gradient:g}, sum of decoder norms {decoder:g}) "
            f"although the batch is; lower lr (now {self.config.lr:g}) or look for outliers in the activations."
        )


def require_finite(batch: Tensor, name: str) -> None:
    """Refuse a batch with NaN or infinite numbers; says how many and where the first is."""
    bad = ~torch.isfinite(batch)
    if bool(bad.any()):
        row, column = (int(place) for place in bad.nonzero()[0])
        raise SaeTrainingError(
            f"{name} has {int(bad.sum())} values that are not finite, the first at token {row}, column {column} "
            f"({float(batch[row, column])}); remove such tokens from the stream."
        )
