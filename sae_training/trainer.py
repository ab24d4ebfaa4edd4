"""Training a crosscoder: deterministic, resumable to the same bytes, stopped by the first number that is not finite."""

from __future__ import annotations

import json
import logging
import math
import shutil
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_training.checkpoint import (
    CHECKPOINTS,
    TrainState,
    check_settings,
    list_checkpoints,
    load_checkpoint,
    write_checkpoint,
)
from sae_training.config import TrainConfig
from sae_training.crosscoder import Crosscoder, mean_norm_scale
from sae_training.errors import SaeTrainingError
from sae_training.evaluation import batch_fve
from sae_training.selection import Selector
from sae_training.step import StepOutput, StepWeights, loss_and_gradients
from sae_training.storage import assign_weights, json_bytes, read_crosscoder, save_crosscoder, write_atomic
from sae_training.stream import BatchStream, batch_digest

METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"

logger = logging.getLogger(__name__)

OnLog = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainResult:
    """What a training run came to.

    Attributes:
        crosscoder: the trained crosscoder (the one that was given).
        n_steps: optimizer steps, those before a resume included.
        n_tokens: tokens trained on.
        n_distinct_batches: batches that differed; fewer than ``n_steps`` means that the stream repeats itself.
        metrics: the last line of the metrics.
        seconds: time of this call.
        stream_ended: the stream ended before ``n_tokens``.
        folder: where the run is, if anywhere.
    """

    crosscoder: Crosscoder
    n_steps: int
    n_tokens: int
    n_distinct_batches: int
    metrics: dict[str, Any]
    seconds: float
    stream_ended: bool = False
    folder: Path | None = None


def train(
    crosscoder: Crosscoder,
    batches: Iterable[Tensor],
    config: TrainConfig,
    *,
    out: str | Path | None = None,
    resume: bool = True,
    on_log: OnLog | None = None,
) -> TrainResult:
    """Train a crosscoder in place on a stream of raw activations.

    An unset scale is estimated from the first batches; the biases start so that the mean activation is explained.

    Args:
        crosscoder: fresh; on resume its weights are replaced by the checkpoint's.
        batches: tensors ``[batch model d_model]`` (``[batch d_all]`` where widths differ). With ``state_dict`` and
            ``load_state_dict`` the position is saved; otherwise a resume skips what was consumed.
        config: how to train.
        out: folder of the run: ``config.json``, ``weights.safetensors``, ``metrics.jsonl``, ``result.json`` and
            ``checkpoints/``. None keeps everything in memory.
        resume: go on from the latest checkpoint in ``out``, or return a finished run; False begins again.
        on_log: called with each line of metrics, and with ``tokens_per_s``.

    Raises:
        SaeTrainingError: for a batch of the wrong shape, an empty stream, a run folder of other settings, and a loss
            that is not finite; the folder then keeps its last good checkpoint.
    """
    run = _Run(crosscoder, batches, config, Path(out) if out is not None else None, on_log)
    return run.finished_before(resume) or run.run(resume)


@dataclass
class _Run:
    crosscoder: Crosscoder
    batches: Iterable[Tensor]
    config: TrainConfig
    out: Path | None
    on_log: OnLog | None
    last_metrics: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        # A fused update halves the passes over memory on CPU and GPU alike.
        optimizer = torch.optim.Adam(
            self.crosscoder.parameters(), lr=self.config.lr, betas=self.config.adam_betas, fused=True
        )
        fired = torch.zeros(self.crosscoder.d_sae, dtype=torch.int64, device=self.crosscoder.device)
        self.state = TrainState(optimizer, fired)
        self.stream = BatchStream(self.batches, self.crosscoder, self.config.batch_size)
        self.selector = Selector(self.crosscoder.variant, self.crosscoder.config.k)
        aux_k = self.config.aux_k or max(self.crosscoder.config.widths) // 2 or 1
        self.aux = (self.config.aux_coefficient if self.crosscoder.variant.has_dead_feature_loss else 0.0, aux_k)
        self.settings = {
            "crosscoder": self.crosscoder.config.model_dump(mode="json"),
            "training": self.config.model_dump(mode="json"),
        }
        self.tokens_here = 0

    def finished_before(self, resume: bool) -> TrainResult | None:
        """The result of an earlier, finished run in the folder."""
        if self.out is None:
            return None
        if not resume:
            self._clear()
            return None
        result_file = self.out / RESULT_FILE
        if not result_file.is_file():
            return None
        data = json.loads(result_file.read_text(encoding="utf-8"))
        check_settings(result_file, data["settings"], self.settings)
        assign_weights(self.crosscoder, read_crosscoder(self.out)[1], self.out)
        counts = {name: data[name] for name in ("n_steps", "n_tokens", "n_distinct_batches", "metrics", "stream_ended")}
        return TrainResult(self.crosscoder, **counts, seconds=0.0, folder=self.out)

    def run(self, resume: bool) -> TrainResult:
        """Train to the end."""
        if not (resume and self._resume()):
            self._set_up()
        stream_ended = False
        while self.state.n_tokens < self.config.n_tokens:
            batch = self.stream.next()
            if batch is None:
                stream_ended = True
                logger.warning("the stream ended after %d of %d tokens", self.state.n_tokens, self.config.n_tokens)
                break
            self._train_on(batch)
            every = self.config.checkpoint_every
            if every and self.state.step % every == 0:
                self._checkpoint()
        return self._finish(stream_ended)

    def _resume(self) -> bool:
        checkpoints = list_checkpoints(self.out) if self.out is not None else []
        if not checkpoints:
            return False
        self.stream.load_state_dict(load_checkpoint(checkpoints[-1], self.crosscoder, self.state, self.settings))
        self.selector.last_cut = self.state.last_cut
        self._keep_metrics_until(self.state.step)
        logger.info("resumed from %s after %d tokens", checkpoints[-1].name, self.state.n_tokens)
        return True

    def _set_up(self) -> None:
        """Scale and biases from the first batches."""
        ahead = self.stream.read_ahead(self.config.n_setup_batches)
        if not ahead:
            raise SaeTrainingError("the stream of activations is empty; give at least one batch.")
        for number, batch in enumerate(ahead):
            require_finite(batch, f"batch {number}")
        if self.out is not None:
            self._keep_metrics_until(0)
        crosscoder = self.crosscoder
        x = torch.cat(ahead).float()
        if not crosscoder.has_scale:
            crosscoder.set_scale(mean_norm_scale(x, crosscoder.config.widths))
        with torch.no_grad():
            mean = crosscoder.scaled(x).double().mean(dim=0).to(crosscoder.decoder.dtype)
            crosscoder.b_dec_flat.copy_(mean)
            crosscoder.b_enc.copy_(-(crosscoder.encoder @ mean))

    def _train_on(self, batch: Tensor) -> None:
        config, state, crosscoder = self.config, self.state, self.crosscoder
        coefficient, aux_k = self.aux
        weights = StepWeights(l1=config.l1_at(state.n_tokens), aux=coefficient, aux_k=aux_k)
        lr = config.lr_at(state.n_tokens)
        dead = state.tokens_since_fired >= config.dead_window
        output = loss_and_gradients(
            crosscoder, crosscoder.scaled(batch), self.selector, weights, dead=dead, sparse=self._sparse()
        )
        self._require_finite_loss(output, batch)
        if config.grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(crosscoder.parameters(), config.grad_clip)
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        self._count(output, batch)
        if state.step % config.log_every == 0 or state.n_tokens >= config.n_tokens:
            self._log(output, weights, lr)

    def _sparse(self) -> bool:
        if self.config.kernel != "auto":
            return self.config.kernel == "sparse"
        if self.crosscoder.device.type != "cpu":
            return False
        known = self.crosscoder.config.k / self.crosscoder.d_sae
        density = self.state.density if self.crosscoder.variant.has_l1_penalty else known
        return density <= self.config.sparse_below

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
        if self.crosscoder.variant.has_l1_penalty:
            state.density = float(counts.sum()) / (n_rows * self.crosscoder.d_sae)
        state.digests = torch.cat((state.digests, batch_digest(batch).reshape(1).cpu()))
        state.step += 1
        state.n_tokens += n_rows
        self.tokens_here += n_rows

    def _log(self, output: StepOutput, weights: StepWeights, lr: float) -> None:
        state, names = self.state, self.crosscoder.model_names
        fve = batch_fve(output.x, output.error, self.crosscoder.config.widths)
        metrics: dict[str, Any] = {
            "step": state.step,
            "tokens": state.n_tokens,
            "lr": lr,
            "loss": float(output.loss),
            "mse": float(output.mse),
            "aux": float(output.aux),
            "penalty": float(output.penalty),
            "l1_coefficient": weights.l1 if self.crosscoder.variant.has_l1_penalty else 0.0,
            "l0": float(output.active.column_count().sum()) / output.x.shape[0],
            "fve": dict(zip(names, fve.tolist(), strict=True)),
            "dead_frac": float((state.tokens_since_fired >= self.config.dead_window).double().mean()),
            "threshold": float(self.crosscoder.threshold),
            "distinct_batches": int(state.digests.unique().numel()),
        }
        self.last_metrics = metrics
        if self.out is not None:
            with (self.out / METRICS_FILE).open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(metrics) + "\n")
        if self.on_log is not None:
            rate = self.tokens_here / (time.perf_counter() - self.started)
            self.on_log({**metrics, "tokens_per_s": rate})

    def _require_finite_loss(self, output: StepOutput, batch: Tensor) -> None:
        if math.isfinite(float(output.loss)):
            return
        step = self.state.step + 1
        require_finite(batch, f"batch {step - 1}")
        good = list_checkpoints(self.out)[-1:] if self.out is not None else []
        kept = f"the last good checkpoint is {good[0]}" if good else "no checkpoint was written yet"
        raise SaeTrainingError(
            f"the loss is {float(output.loss)} at step {step} although the batch is finite; {kept}; lower lr (now "
            f"{self.config.lr}) or look for outliers in the activations."
        )

    def _checkpoint(self) -> None:
        if self.out is not None:
            write_checkpoint(
                self.out,
                self.crosscoder,
                self.state,
                self.stream.state_dict(),
                self.settings,
                self.config.keep_checkpoints,
            )

    def _finish(self, stream_ended: bool) -> TrainResult:
        state = self.state
        counts = {
            "n_steps": state.step,
            "n_tokens": state.n_tokens,
            "n_distinct_batches": int(state.digests.unique().numel()),
            "metrics": self.last_metrics,
            "stream_ended": stream_ended,
        }
        if self.out is not None:
            if self.config.checkpoint_every:
                self._checkpoint()
            save_crosscoder(self.crosscoder, self.out)
            write_atomic(self.out / RESULT_FILE, json_bytes({"settings": self.settings, **counts}))
        seconds = time.perf_counter() - self.started
        return TrainResult(self.crosscoder, **counts, seconds=seconds, folder=self.out)

    def _keep_metrics_until(self, step: int) -> None:
        """Drop the lines that the steps after the checkpoint will write again."""
        assert self.out is not None, "a run without a folder has no metrics file"
        path = self.out / METRICS_FILE
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
        write_atomic(path, b"".join(kept))
        self.last_metrics = json.loads(kept[-1]) if kept else {}

    def _clear(self) -> None:
        """Remove what an earlier run left in the folder."""
        assert self.out is not None, "a run without a folder has nothing to clear"
        for name in (RESULT_FILE, METRICS_FILE):
            (self.out / name).unlink(missing_ok=True)
        shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)


def require_finite(batch: Tensor, name: str) -> None:
    """Refuse a batch with NaN or infinite numbers; says how many and where the first is."""
    bad = ~torch.isfinite(batch)
    if bool(bad.any()):
        row, column = (int(place) for place in bad.nonzero()[0])
        raise SaeTrainingError(
            f"{name} has {int(bad.sum())} values that are not finite, the first at token {row}, column {column} "
            f"({float(batch[row, column])}); remove such tokens from the stream."
        )
