"""What a trainer calls while it runs, and the log that it keeps."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechprobe.errors import ModelError

_KEPT_LOGS = (
    "loss", "learning_rate", "grad_norm", "entropy", "reward", "reward_std", "reward_se", "reward_low", "reward_high", "kl",
    "mean_token_accuracy", "completions/mean_length", "completions/clipped_ratio",
)  # fmt: skip
STATE, WHOLE = "checkpoint-", "whole"
"""Beginning of the folder of a state, whose step follows, and name of the file that is written into it last."""


@dataclass
class Watch:
    """Functions that a trainer calls while it runs, and its log.

    Attributes:
        checkpoints: Steps at which ``keep`` is called.
        keep: Function that receives the model and the step.
        on_step: Function that is called after every step.
        resumed: Function that receives the number of finished steps when a training begins or goes on.
        enough: Function that receives the model and the step, and says whether the training ends there.
        curve: Log of the trainer, one entry per logged step.
        counted: Step → ``num_tokens`` of the trainer. A trainer of GRPO counts on after a resume, and one of SFT from 0.
    """

    checkpoints: Sequence[int] = ()
    keep: Callable[[Any, int], object] = lambda _model, _step: None
    on_step: Callable[[], object] = lambda: None
    resumed: Callable[[int], object] = lambda _step: None
    enough: Callable[[Any, int], bool] = lambda _model, _step: False
    curve: list[dict[str, float | int]] = field(default_factory=list)
    counted: dict[int, int] = field(default_factory=dict)

    def callback(self) -> Any:
        """Create the callback for a transformers Trainer."""
        from transformers import TrainerCallback

        watch = self

        class _Callback(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
                watch.curve[:] = [row for row in map(_kept, state.log_history) if row]
                watch.counted = dict(pair for logs in state.log_history for pair in _counted(logs))
                watch.resumed(state.global_step)

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
                watch.on_step()
                if state.global_step in watch.checkpoints:
                    watch.keep(kwargs["model"], state.global_step)
                if watch.enough(kwargs["model"], state.global_step):
                    control.should_training_stop = True

            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
                if state.is_world_process_zero:
                    (Path(args.output_dir) / f"{STATE}{state.global_step}" / WHOLE).touch()

            def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
                logs = {**(kwargs.get("logs") or {}), "step": state.global_step}
                watch.counted |= _counted(logs)
                row = _kept(logs)
                if row:
                    _check_finite(row)
                    watch.curve.append(row)

        return _Callback()


def _kept(logs: dict[str, Any]) -> dict[str, float | int]:
    """The entry of the curve for what a trainer logged; empty for its summary of the whole training."""
    row = {name: float(logs[name]) for name in _KEPT_LOGS if name in logs}
    return {"step": logs["step"], **row} if "loss" in row else {}


def _counted(logs: dict[str, Any]) -> list[tuple[int, int]]:
    """The step and its number of tokens, where a trainer logged it."""
    return [(logs["step"], round(logs["num_tokens"]))] if "num_tokens" in logs else []


def _check_finite(row: dict[str, float | int]) -> None:
    """Raise `ModelError` for a loss or a gradient that is NaN or infinite, which a trainer would go on with."""
    wrong = [name for name in ("loss", "grad_norm") if not math.isfinite(row.get(name, 0.0))]
    if wrong:
        raise ModelError(
            f"The {wrong[-1].replace('grad_norm', 'gradient')} is not finite at step {row['step']}; lower lr, or check the "
            "weights of the base."
        )
