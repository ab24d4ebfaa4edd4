"""Training steps; `sae_training.run` adds the stream and the files."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sae_training.checkpoint import TrainState
from sae_training.crosscoder import Crosscoder
from sae_training.errors import SaeTrainingError
from sae_training.finiteness import NonFiniteCheck, require_finite, require_finite_step
from sae_training.kernels.backend import choose_backend
from sae_training.parallel import ALONE, Division
from sae_training.parameters import Parameters, StepWeights, Ties
from sae_training.selection import Selector
from sae_training.step import StepOutput, loss_and_gradients
from sae_training.step_metrics import step_metrics
from sae_training.stream import batch_digest
from sae_training.train_config import TrainConfig
from sae_training.variants import select_jump
from sae_training.weights import common, mean_norm_scale


class Trainer:
    """Trains a crosscoder batch by batch; `sae_training.train` adds the stream, the files and the resume.

    On a CPU, every step is checked at its end. Elsewhere, the host does not wait for the device in a step. A value that
    is not finite then sets a flag on the device, which keeps the weights unchanged until `look` raises the error. The
    dead latents are determined every ``TrainConfig.refresh_dead_every`` steps.

    Attributes:
        crosscoder: The crosscoder, trained in place.
        config: Settings of the training.
        state: Optimizer and counters: what the next step depends on, except the tensors of the crosscoder.
    """

    def __init__(
        self, crosscoder: Crosscoder, config: TrainConfig, *, lazy: bool | None = None, division: Division = ALONE
    ) -> None:
        """Make a trainer.

        Args:
            crosscoder: The crosscoder, trained in place.
            config: Settings of the training.
            lazy: Whether a step never waits for the device; None means that it waits only on a CPU. On a CPU, True
                needs kernel dense or triton.
            division: The processes that divide the training. All of them make a trainer, and call its methods together with
                the same batches.

        Raises:
            SaeTrainingError: The kernel cannot run on the device, or does not support the variant or ``lazy``.
        """
        assert crosscoder.rows == division.latents(crosscoder.d_sae), (
            "make the crosscoder with the rows of the division"
        )
        self.division = division
        self._backend = choose_backend(config.kernel, crosscoder.device)
        self.crosscoder = crosscoder
        self.config = config
        self.lazy = crosscoder.device.type != "cpu" if lazy is None else lazy
        if self.lazy and crosscoder.device.type == "cpu" and config.kernel not in ("dense", "triton"):
            raise SaeTrainingError(f"a lazy trainer on a CPU needs kernel 'dense' or 'triton', not {config.kernel!r}.")
        own = crosscoder.variant.has_latent_threshold
        parameters = Parameters(
            crosscoder.encoder,
            crosscoder.decoder,
            nn.Parameter(crosscoder.b_enc.detach().clone()),
            nn.Parameter(crosscoder.b_dec_flat.detach().clone()),
            crosscoder.config.widths,
            tuple(common(crosscoder.rows, slice(0, end)).stop for end in crosscoder.config.prefix_ends),
            nn.Parameter(crosscoder.threshold.to(crosscoder.decoder.dtype).log()) if own else None,
        )
        # A fused update halves the number of passes over memory, on CPU and GPU.
        optimizer = torch.optim.Adam(parameters.all(), lr=config.lr, betas=config.adam_betas, fused=True)
        fired = torch.zeros(crosscoder.b_enc.shape, dtype=torch.int64, device=crosscoder.device)
        self.state = TrainState(parameters, torch.zeros_like(crosscoder.b_dec_flat), optimizer, fired)
        self.selector = Selector(crosscoder.variant, crosscoder.config.k, self._backend or "embedding_bag", division)
        if config.kernel in ("sparse", "triton") and not self.selector.has_sparse_step:
            raise SaeTrainingError(
                f"variant {crosscoder.variant.name!r} has no sparse step on {crosscoder.device}; "
                f"use kernel 'auto' or 'dense', not {config.kernel!r}."
            )
        if config.delta_coefficient and not crosscoder.config.same_width:
            raise SaeTrainingError(
                f"delta_coefficient needs models of one width, but they have {list(crosscoder.config.widths)}; set it to 0."
            )
        self._ties = Ties(crosscoder.config, crosscoder.rows, crosscoder.decoder)
        self._weights = StepWeights(
            l1=config.l1_coefficient,
            aux=config.aux_coefficient if crosscoder.variant.has_dead_latent_loss else 0.0,
            aux_k=config.aux_k or max(1, max(crosscoder.config.widths) // 2),
            aux_stride=round(1 / config.aux_batch_frac),
            l0=config.l0_coefficient,
            bandwidth=config.bandwidth,
            share=self._ties.penalty_share(crosscoder.b_enc, config.shared_penalty),
            delta=config.delta_coefficient,
        )
        self._n_tokens_before = 0
        self._nonfinite = NonFiniteCheck(crosscoder.device)
        self._known_dead: Tensor | None = None
        self._n_dead: int | None = None
        self._column_scale: Tensor | None = None
        if self.lazy:
            # The fused Adam of torch reads this attribute, which GradScaler usually sets. At 1 it changes no weight.
            fused: Any = optimizer
            fused.found_inf = self._nonfinite.found

    @torch.no_grad()
    def set_up(self, batches: list[Tensor]) -> None:
        """Initialize an unset scale, the biases and the gain of the encoder from raw batches.

        The biases explain the mean activation.

        Raises:
            SaeTrainingError: A batch has a wrong shape or is not finite, or all activations are zero.
        """
        crosscoder, state = self.crosscoder, self.state
        flat = [crosscoder.flatten(batch) for batch in batches]
        for number, batch in enumerate(flat):
            require_finite(batch, f"batch {number}")
        if not crosscoder.has_scale:
            target = crosscoder.target(torch.cat(flat)).float()
            # two models may differ on a few tokens only, so a difference has no typical norm to be far from
            of_difference = crosscoder.config.reads == "difference"
            scale = mean_norm_scale(target, crosscoder.config.widths, with_far=of_difference)
            crosscoder.set_scale(scale.chunk(2)[1].repeat(2) if of_difference else scale)
        state.center.copy_(crosscoder.scaled(torch.cat(flat)).double().mean(dim=0))
        state.parameters.b_enc.zero_()
        state.parameters.b_dec.zero_()
        self._column_scale = None
        if not crosscoder.variant.has_l1_penalty:
            crosscoder.encoder.mul_(self._gain(flat[0]))
        self._write_biases()

    def _centered(self, batch: Tensor) -> Tensor:
        if not self.lazy:
            return self.crosscoder.scaled(batch).sub_(self.state.center)
        if self._column_scale is None:
            self._column_scale = self.crosscoder.column_scale()
        flat = self.crosscoder.target(batch).to(self.crosscoder.decoder.dtype)
        return (flat / self._column_scale).sub_(self.state.center)

    def _gain(self, batch: Tensor) -> float:
        """The factor of the encoder for which the first reconstruction has the least squared error."""
        parameters, division = self.state.parameters, self.division
        rows = division.share(batch.shape[0])
        x, sparse = self._centered(batch[rows.place]), self._sparse(rows.n_rows)
        norm = self.crosscoder.feature_norm()
        scores = self.selector.scores(x, parameters.encoder, parameters.b_enc, norm)
        if parameters.log_threshold is None:
            active, _ = self.selector.select(scores, norm, sparse=sparse, n_rows=rows.n_rows)
        else:
            threshold = parameters.log_threshold.exp()
            active = select_jump(scores, norm, threshold, self.config.bandwidth, sparse=sparse).active
        self.selector.last_cut = None
        explained = division.sum_of_latents_(active.decode(parameters.decoder))
        sums = division.sum_of_tokens_(torch.stack((explained.square().sum(), (x * explained).sum())))
        total, product = sums.tolist()
        return product / total if total > 0 and product > 0 else 1.0

    @torch.no_grad()
    def _write_biases(self) -> None:
        """Write the thresholds and the biases for activations that are not centered to the crosscoder."""
        parameters, center = self.state.parameters, self.state.center
        self.crosscoder.b_enc.copy_(parameters.b_enc - parameters.encoder @ center)
        self.crosscoder.b_dec_flat.copy_(parameters.b_dec + center)
        if parameters.log_threshold is not None:
            self.crosscoder.threshold.copy_(parameters.log_threshold.exp())

    def step(self, *batches: Tensor) -> StepOutput:
        """Do one optimizer step on one or several batches of raw activations.

        With several batches, the gradient is that of the mean loss over all their tokens.

        Returns:
            Loss terms and active latents of the last batch.

        Raises:
            SaeTrainingError: The step is not finite. The weights are then as before the step. A lazy trainer raises the
                error in `look`, and keeps the weights as before the first such step.
        """
        config, state = self.config, self.state
        self._n_tokens_before = state.n_tokens
        outputs = self._gradients(batches)
        if self.division.by_tokens:
            for parameter in state.parameters.all():
                self.division.sum_(_gradient(parameter))
        self._ties.constrain(state.parameters)
        gradient_norm = self._gradient_norm()
        if self.lazy:
            self._nonfinite.watch(outputs, gradient_norm, state.step + 1, self.division)
        else:
            raw = [self.crosscoder.flatten(batch) for batch in batches]
            require_finite_step(outputs, gradient_norm, raw, step=state.step + 1, lr=config.lr)
        if config.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(state.parameters.all(), config.grad_clip, gradient_norm)
        for group in state.optimizer.param_groups:
            group["lr"] = config.lr_at(state.n_tokens)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        self._write_biases()
        self._count(outputs, batches)
        return outputs[-1]

    def look(self) -> None:
        """Wait for the device, and check that all steps so far were finite.

        Raises:
            SaeTrainingError: A step was not finite; the message names the first one. The weights are as before it.
        """
        if self.lazy:
            self.division.settle(self.crosscoder.device)
            self._nonfinite.require_finite(self.config.lr)
            self._known_dead = None  # a run resumed here determines the dead latents again, so this run must too

    def _gradients(self, batches: Sequence[Tensor]) -> list[StepOutput]:
        """Set the gradient of the mean loss over the tokens of all batches."""
        config, state = self.config, self.state
        dead, outputs = self._dead(), []
        weights = replace(
            self._weights,
            l1=config.l1_at(state.n_tokens),
            l0=config.l0_at(state.n_tokens),
            units=self._units(),
            n_dead=self._n_dead,
        )
        n_rows = sum(batch.shape[0] for batch in batches)
        sums: list[Tensor] = []
        for batch in batches:
            rows = self.division.share(batch.shape[0])
            output = loss_and_gradients(
                state.parameters,
                self._centered(batch[rows.place]),
                self.selector,
                weights,
                dead=dead,
                rows=rows,
                sparse=self._sparse(rows.n_rows),
                bfloat16=config.precision == "bfloat16",
            )
            outputs.append(output)
            if len(batches) == 1:
                return outputs
            share = batch.shape[0] / n_rows
            gradients = [parameter.grad for parameter in state.parameters.all() if parameter.grad is not None]
            if not sums:
                sums = [torch.zeros_like(gradient) for gradient in gradients]
            for total, gradient in zip(sums, gradients, strict=True):
                total.add_(gradient, alpha=share)
        for parameter, total in zip(state.parameters.all(), sums, strict=True):
            parameter.grad = total
        return outputs

    def _gradient_norm(self) -> Tensor:
        """L2 norm of the gradient of all weights of all processes."""
        parameters = self.state.parameters
        if not self.division.by_latents:
            return nn.utils.get_total_norm([_gradient(parameter) for parameter in parameters.all()])
        own = nn.utils.get_total_norm([_gradient(parameter) for parameter in parameters.of_latents()])
        return (self.division.sum_(own.square()) + _gradient(parameters.b_dec).square().sum()).sqrt()

    def _units(self) -> Tensor | None:
        """Scale of each source over the mean scale of its site; None where no term of the loss compares models."""
        if not self.config.delta_coefficient:
            return None
        by_model = self.crosscoder.scale.to(self.crosscoder.decoder.dtype).view(self.crosscoder.n_models, -1)
        return by_model / by_model.mean(dim=0)

    def _dead(self) -> Tensor | None:
        """Indices of the dead latents; a lazy trainer updates them rarely, because that waits for the device."""
        if self._weights.aux == 0:
            return None
        if not self.lazy or self._known_dead is None or self.state.step % self.config.refresh_dead_every == 0:
            self.division.settle(self.crosscoder.device)
            dead = self.state.tokens_since_fired >= self.config.dead_window
            self._known_dead = dead.nonzero().squeeze(1)
            if self.division.by_latents:
                self._n_dead = sum(self.division.numbers(self._known_dead.numel(), dead.device))
        return self._known_dead

    def metrics(self, output: StepOutput) -> dict[str, Any]:
        """Measures of the latest step, whose last batch gave ``output``; waits for the device."""
        state, crosscoder = self.state, self.crosscoder
        self.division.settle(crosscoder.device)
        found = step_metrics(output, crosscoder, state, self.config, self._n_tokens_before, self.division)
        if self.lazy and not crosscoder.variant.has_fixed_k:
            state.density = found["l0"] / crosscoder.d_sae
        return found

    def _sparse(self, n_rows: int | None = None) -> bool:
        """Whether a step on a batch of ``n_rows`` rows is sparse, in all processes; one without rows does a dense step."""
        without_rows = self.division.by_tokens and n_rows is not None and n_rows < self.division.count
        if self._backend is None or not self.selector.has_sparse_step or without_rows:
            return False
        if self.config.kernel != "auto":
            return True
        known = self.crosscoder.config.k / self.crosscoder.d_sae
        density = known if self.crosscoder.variant.has_fixed_k else self.state.density
        on_gpu = self._backend == "triton"
        return density <= (self.config.sparse_below_gpu if on_gpu else self.config.sparse_below)

    def _count(self, outputs: Sequence[StepOutput], batches: Sequence[Tensor]) -> None:
        state = self.state
        n_rows = sum(batch.shape[0] for batch in batches)
        counts = torch.stack([output.active.column_count() for output in outputs]).sum(dim=0)
        counts = self.division.sum_of_tokens_(counts)
        since = torch.where(counts > 0, 0, state.tokens_since_fired + n_rows)
        state.tokens_since_fired = self._nonfinite.guarded(state.tokens_since_fired, since) if self.lazy else since
        for output in outputs:
            if output.cut is not None:
                self._average_cut(output.cut)
        state.last_cut = self.selector.last_cut
        # In a lazy step this would wait for the device; `metrics` waits anyway, and updates the density there.
        if not self.crosscoder.variant.has_fixed_k and not self.lazy:
            n_active = self.division.sum_of_latents_(counts.sum())
            state.density = float(n_active) / (n_rows * self.crosscoder.d_sae)
        state.new_digests += [batch_digest(batch) for batch in batches]
        state.step += 1
        state.n_tokens += n_rows

    def _average_cut(self, cut: Tensor) -> None:
        """Update the threshold: a plain mean at first, then a running mean with ``threshold_momentum``."""
        state, threshold = self.state, self.crosscoder.threshold
        momentum = min(self.config.threshold_momentum, state.n_cuts / (state.n_cuts + 1))
        moved = threshold * momentum + cut.double() * (1 - momentum)
        threshold.copy_(self._nonfinite.guarded(threshold, moved) if self.lazy else moved)
        state.n_cuts += 1


def _gradient(parameter: nn.Parameter) -> Tensor:
    assert parameter.grad is not None, "every step sets the gradients"
    return parameter.grad
