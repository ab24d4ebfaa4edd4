"""What both trainers share: TRL's arguments, and the run from seed to last step.

TRL trains: its loss of SFT is a mean over the tokens of the whole step, and its states resume to the same bytes, which the tests
of this room check for the version at hand.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mechprobe.errors import ConfigError, DependencyError
from mechprobe.memory import needing_memory
from mechprobe.posttrain.config import PosttrainConfig
from mechprobe.posttrain.watch import STATE, WHOLE, Watch
from mechprobe.random_state import isolated_random_state

_SMALLER = "set gradient_checkpointing = true, or lower micro_batch_size, prompts_per_step or max_new_tokens, and run the same command again"
Frozen = Callable[[str], bool]
"""Whether a parameter stays fixed, from its name."""


@dataclass(frozen=True)
class Place:
    """Where a training runs and keeps its state.

    Attributes:
        device: ``cpu`` or ``cuda``.
        processes: Number of processes that train together.
        state: Folder of the states; None keeps none.
    """

    device: str = "cpu"
    processes: int = 1
    state: Path | None = None

    def latest(self) -> Path | None:
        """The newest whole state; older and torn ones are removed."""
        if self.state is None or not self.state.is_dir():
            return None
        found = sorted(self.state.glob(f"{STATE}*"), key=lambda path: int(path.name.removeprefix(STATE)))
        whole = [path for path in found if (path / WHOLE).is_file()]
        return whole[-1] if whole else None


@dataclass(frozen=True)
class Session:
    """One training.

    Attributes:
        n_steps: Number of optimizer steps.
        order: Index of the row of every visit, ``n_steps * prompts_per_step`` in all; None lets TRL shuffle by the seed.
        seed: Seed of Python's, NumPy's and torch's generators.
        watch: What is called while it runs.
        place: Where it runs.
        frozen: Which parameters stay fixed.
        user: The work, for the message if TRL is missing.
    """

    n_steps: int
    order: Sequence[int] | None
    seed: int
    watch: Watch
    place: Place = field(default_factory=Place)
    frozen: Frozen = lambda _name: False
    user: str = "Post-training"


def micro_batches(config: PosttrainConfig, processes: int) -> tuple[int, int]:
    """Responses of a forward pass, and number of forward passes of a step, in each of the processes.

    Raises:
        ConfigError: Micro-batches and processes do not divide a step.
    """
    own, rest = divmod(config.responses_per_step, processes)
    micro = min(config.micro_batch_size or max(own, 1), max(own, 1))
    if rest or own % micro:
        raise ConfigError(
            f"A step has {config.responses_per_step} responses, which {processes} process(es) with micro_batch_size = {micro} "
            "do not share evenly; change prompts_per_step or micro_batch_size."
        )
    return micro, own // micro


def arguments(config: PosttrainConfig, session: Session) -> dict[str, Any]:
    """Arguments of TRL that both trainers share.

    Raises:
        ConfigError: Micro-batches and processes do not divide a step.
    """
    place = session.place
    micro, passes = micro_batches(config, place.processes)
    names = {"constant": "constant_with_warmup"}
    return {
        "seed": session.seed,
        "use_cpu": place.device == "cpu",
        "ddp_backend": "gloo" if place.device == "cpu" and place.processes > 1 else None,
        "bf16": config.bf16,
        "gradient_checkpointing": config.gradient_checkpointing,
        "max_grad_norm": config.max_grad_norm,
        "weight_decay": config.weight_decay,
        "learning_rate": config.lr,
        "lr_scheduler_type": names.get(config.schedule, config.schedule),
        "warmup_steps": config.warmup_steps(session.n_steps),
        "max_steps": session.n_steps,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": passes,
        "save_strategy": "no" if place.state is None else "steps",
        "save_steps": config.state_every,
        "save_total_limit": 2,
        "report_to": [],
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
    }


def run(session: Session, load: Callable[[], Any], make: Callable[[str, Any], Any]) -> Any:
    """Load a model, fix its frozen parts, and train it from the newest state to the last step.

    Args:
        session: The training.
        load: Loads the model with all parameters trainable, which may draw from the seeded generators.
        make: Makes the trainer from its folder and the model.

    Returns:
        The model in evaluation mode.
    """
    from transformers import PrinterCallback

    with _folder(session.place.state) as folder, isolated_random_state(session.seed), quiet():
        model = load()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and not session.frozen(name))
        trainer = make(folder, model)
        trainer.remove_callback(PrinterCallback)
        trainer.create_model_card = lambda **_: None
        state = session.place.latest()
        with needing_memory(session.user, _SMALLER):
            trainer.train(resume_from_checkpoint=None if state is None else str(state))
    return model.eval()


@contextmanager
def _folder(state: Path | None) -> Iterator[str]:
    if state is None:
        with tempfile.TemporaryDirectory() as folder:
            yield folder
        return
    yield str(state)


def clean(place: Place) -> None:
    """Remove states that a killed process left torn, so that rotation never removes a whole one for them."""
    newest = place.latest()
    for path in () if place.state is None else place.state.glob(f"{STATE}*"):
        if path != newest:
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Hide progress bars, notices and deprecation warnings of transformers, datasets and TRL inside the ``with`` block."""
    import warnings

    import datasets
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    dataset_bars = not datasets.are_progress_bars_disabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
        if dataset_bars:
            datasets.enable_progress_bars()


def n_processes() -> tuple[int, int]:
    """Index of this process, and number of processes, as a launcher such as torchrun set them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def require_trl(user: str) -> tuple[Any, Any]:
    """Import TRL and datasets.

    Raises:
        DependencyError: One of them is not installed.
    """
    try:
        import datasets
        import trl
    except ImportError:
        raise DependencyError(
            f"{user} requires TRL, which is not installed; run `pip install 'mechprobe[posttrain]'`."
        ) from None
    return trl, datasets
