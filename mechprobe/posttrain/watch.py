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
    """

    checkpoints: Sequence[int] = ()
    keep: Callable[[Any, int], object] = lambda _model, _step: None
    on_step: Callable[[], object] = lambda: None
    resumed: Callable[[int], object] = lambda _step: None
    enough: Callable[[Any, int], bool] = lambda _model, _step: False
    curve: list[dict[str, float | int]] = field(default_factory=list)

    def callback(self) -> Any:
        """Create the callback for a transformers Trainer."""
        from transformers import TrainerCallback

        watch = self

        class _Callback(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
                watch.curve[:] = [row for row in map(_kept, state.log_history) if row]
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
                row = _kept({**(kwargs.get("logs") or {}), "step": state.global_step})
                if row:
                    _check_finite(row)
                    watch.curve.append(row)

        return _Callback()


def _kept(logs: dict[str, Any]) -> dict[str, float | int]:
    """The entry of the curve for what a trainer logged; empty for its summary of the whole training."""
    row = {name: float(logs[name]) for name in _KEPT_LOGS if name in logs}
    return {"step": logs["step"], **row} if "loss" in row else {}


def _check_finite(row: dict[str, float | int]) -> None:
    """Raise `ModelError` for a loss or a gradient that is NaN or infinite, which a trainer would go on with."""
    wrong = [name for name in ("loss", "grad_norm") if not math.isfinite(row.get(name, 0.0))]
    if wrong:
        raise ModelError(
            f"The {wrong[-1].replace('grad_norm', 'gradient')} is not finite at step {row['step']}; lower lr, or check the "
            "weights of the base."
        )
