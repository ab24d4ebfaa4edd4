"""A training run: a `Trainer` with a stream, a folder, a log and a resume."""

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sae_training.atomic import write_bytes
from sae_training.checkpoint import (
    CHECKPOINTS,
    Position,
    check_settings,
    list_checkpoints,
    load_checkpoint,
    write_checkpoint,
)
from sae_training.crosscoder import Crosscoder
from sae_training.errors import SaeTrainingError
from sae_training.parallel import ALONE, Division
from sae_training.storage import json_bytes
from sae_training.stream import BatchStream
from sae_training.train_config import TrainConfig
from sae_training.trainer import Trainer

METRICS_FILE = "metrics.jsonl"
RESULT_FILE = "result.json"
_COUNTS = ("n_steps", "n_tokens", "n_distinct_batches", "metrics", "stream_ended")

logger = logging.getLogger(__name__)

OnLog = Callable[[dict[str, Any]], None]
OnStep = Callable[[int], None]


@dataclass(frozen=True)
class TrainResult:
    """Result of a training run.

    Attributes:
        crosscoder: The crosscoder that was given, now trained.
        n_steps: Number of optimizer steps, including those before a resume.
        n_tokens: Number of tokens trained on.
        n_distinct_batches: Number of different batches; a smaller number than batches used means that the stream
            repeats.
        metrics: Last line of the metrics.
        seconds: Duration of this call.
        stream_ended: Whether the stream ended before ``TrainConfig.n_tokens``.
        folder: Folder of the run; None for a run in memory.
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
    on_step: OnStep | None = None,
    division: Division = ALONE,
) -> TrainResult:
    """Train a crosscoder in place on a stream of raw activations.

    The first batches determine an unset scale, and initial biases that explain the mean activation.

    Args:
        crosscoder: A new crosscoder. On resume, the weights of the checkpoint replace its weights.
        batches: Tensors ``[batch model d_model]``, ``[batch source d_model]`` for several sites, or ``[batch d_all]``
            for models of different widths. A stream with ``state_dict`` and ``load_state_dict`` is resumed at its
            position. Otherwise a resume skips the batches that were consumed.
        config: Settings of the training.
        out: Folder for ``config.json``, ``weights.safetensors``, ``metrics.jsonl``, ``result.json`` and
            ``checkpoints/``. None keeps everything in memory.
        resume: Whether to continue from the latest checkpoint in ``out``, or to return the result of a finished run.
            False starts again.
        on_log: Called with each line of metrics and ``tokens_per_s``.
        on_step: Called with the number of tokens trained on, at the beginning and after every step.
        division: The processes that divide the training. All of them call this with the same arguments, except that each
            makes its crosscoder with its own latents (`Division.latents`). The first writes everything that exists once.

    Raises:
        SaeTrainingError: A batch has the wrong shape, the stream is empty, ``out`` holds a run with other settings, or
            a step is not finite. In the last case ``out`` keeps its last good checkpoint.
    """
    run = _Run(crosscoder, batches, config, Path(out) if out is not None else None, (on_log, on_step), division)
    with division.agreeing():
        return run.finished_before(resume) or run.run(resume)


class _Run:
    def __init__(
        self,
        crosscoder: Crosscoder,
        batches: Iterable[Tensor],
        config: TrainConfig,
        out: Path | None,
        calls: tuple[OnLog | None, OnStep | None],
        division: Division,
    ) -> None:
        self.crosscoder, self.config, self.out, self.division = crosscoder, config, out, division
        self.on_log, self.on_step = calls
        self.trainer = Trainer(crosscoder, config, division=division)
        self.stream = BatchStream(batches, crosscoder, config.batch_size)
        self.settings = {
            "crosscoder": crosscoder.config.model_dump(mode="json"),
            "training": config.model_dump(mode="json"),
        }
        self.last_metrics: dict[str, Any] = {}
        self.started = time.perf_counter()
        self.n_tokens_before = 0

    def finished_before(self, resume: bool) -> TrainResult | None:
        """The result of a finished run in the folder, if there is one."""
        if self.out is None or not resume:
            return None
        result_file = self.out / RESULT_FILE
        if not self.division.of_first(result_file.is_file()):
            return None
        try:
            data = json.loads(result_file.read_text(encoding="utf-8"))
            found, counts = data["settings"], {name: data[name] for name in _COUNTS}
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise SaeTrainingError(f"{result_file} is damaged ({error}); remove it to resume the run.") from None
        check_settings(result_file, found, self.settings)
        self.crosscoder.load_weights(self.out)
        return TrainResult(self.crosscoder, **counts, seconds=0.0, folder=self.out)

    def run(self, resume: bool) -> TrainResult:
        """Train to the end."""
        if not (resume and self._resume()):
            self._begin(resume)
        state, config = self.trainer.state, self.config
        self.n_tokens_before = state.n_tokens
        self._count()
        stream_ended = False
        while state.n_tokens < config.n_tokens:
            batches = self._draw()
            if not batches:
                stream_ended = True
                logger.warning("the stream ended after %d of %d tokens", state.n_tokens, config.n_tokens)
                break
            with self._checkpoint_in_errors():
                self._step(batches)
        with self._checkpoint_in_errors():
            self.trainer.look()
        return self._finish(stream_ended)

    def _draw(self) -> list[Tensor]:
        """The batches of one optimizer step; fewer at the end of the stream. A process that fails to read ends all."""
        batches: list[Tensor] = []
        with self.division.agreeing():
            while len(batches) < self.config.accumulation and (batch := self.stream.next()) is not None:
                batches.append(batch)
        return batches

    @contextmanager
    def _checkpoint_in_errors(self) -> Iterator[None]:
        """Add the last good checkpoint to the message of an error in training."""
        try:
            yield
        except SaeTrainingError as error:
            good = list_checkpoints(self.out)[-1:] if self.out is not None else []
            kept = f"the last good checkpoint is {good[0]}" if good else "no checkpoint was written yet"
            raise SaeTrainingError(f"{error} ({kept})") from None

    def _step(self, batches: list[Tensor]) -> None:
        state, config = self.trainer.state, self.config
        output = self.trainer.step(*batches)
        self._count()
        log = state.step % config.log_every == 0 or state.n_tokens >= config.n_tokens
        keep = config.checkpoint_every and state.step % config.checkpoint_every == 0
        if log or keep:
            self.trainer.look()
        if log:
            self._log(self.trainer.metrics(output))
        if keep:
            self._checkpoint()

    def _count(self) -> None:
        if self.on_step is not None:
            self.on_step(self.trainer.state.n_tokens)

    def _begin(self, resume: bool) -> None:
        with self.division.agreeing():
            ahead = self.stream.read_ahead(self.config.n_setup_batches)
        if not ahead:
            raise SaeTrainingError("the stream of activations is empty; give at least one batch.")
        self.trainer.set_up(ahead)
        if self.out is not None:
            if not resume and self.division.is_first:
                self._clear()
            self._keep_metrics_until(0)

    def _resume(self) -> bool:
        checkpoints = self.division.of_first(list_checkpoints(self.out) if self.out is not None else [])
        if not checkpoints:
            return False
        state = self.trainer.state
        position = load_checkpoint(checkpoints[-1], self.crosscoder, state, self.settings, self.division)
        with self.division.agreeing():
            self.stream.load_state_dict(position)
        self.trainer.selector.last_cut = state.last_cut
        self._keep_metrics_until(state.step)
        logger.info("resumed from %s after %d tokens", checkpoints[-1].name, state.n_tokens)
        return True

    def _log(self, metrics: dict[str, Any]) -> None:
        self.last_metrics = metrics
        if self.out is not None and self.division.is_first:
            with (self.out / METRICS_FILE).open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(metrics) + "\n")
        if self.on_log is not None:
            n_here = self.trainer.state.n_tokens - self.n_tokens_before
            self.on_log({**metrics, "tokens_per_s": n_here / (time.perf_counter() - self.started)})

    def _checkpoint(self) -> None:
        if self.out is not None:
            position, n_kept = Position(self.stream.state_dict(), self.settings), self.config.keep_checkpoints
            write_checkpoint(self.out, self.crosscoder, self.trainer.state, position, n_kept, self.division)

    def _finish(self, stream_ended: bool) -> TrainResult:
        state = self.trainer.state
        counts = {
            "n_steps": state.step,
            "n_tokens": state.n_tokens,
            "n_distinct_batches": int(state.settle_digests().unique().numel()),
            "metrics": self.last_metrics,
            "stream_ended": stream_ended,
        }
        if self.out is not None:
            if self.config.checkpoint_every:
                self._checkpoint()
            self.crosscoder.save(self.out, self.division)
            if self.division.is_first:
                write_bytes(self.out / RESULT_FILE, json_bytes({"settings": self.settings, **counts}))
        seconds = time.perf_counter() - self.started
        return TrainResult(self.crosscoder, **counts, seconds=seconds, folder=self.out)

    def _keep_metrics_until(self, step: int) -> None:
        """Remove the lines of steps after ``step``, which the resumed run writes again."""
        assert self.out is not None, "a run without a folder has no metrics file"
        path = self.out / METRICS_FILE
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
        self.last_metrics = self.division.of_first(json.loads(kept[-1]) if kept else {})
        if self.division.is_first:
            write_bytes(path, b"".join(kept))

    def _clear(self) -> None:
        """Remove the files of an earlier run from the folder."""
        assert self.out is not None, "a run without a folder has nothing to clear"
        for name in (RESULT_FILE, METRICS_FILE):
            (self.out / name).unlink(missing_ok=True)
        shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)
