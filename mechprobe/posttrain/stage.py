"""The ``posttrain`` stage: train one arm from a base, with checkpoints, and prove which prompts it saw."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from mechprobe.data.config import PromptsConfig
from mechprobe.errors import ConfigError
from mechprobe.evals.scorers.parse import AnyScorer
from mechprobe.models.load import LanguageModel
from mechprobe.posttrain.arm import STAGE, Arm
from mechprobe.posttrain.arm_training import ArmTraining
from mechprobe.posttrain.config import GrpoConfig, PosttrainConfig, SftConfig
from mechprobe.posttrain.result import PosttrainResult
from mechprobe.posttrain.training import n_processes, require_trl
from mechprobe.stage_folder import Stage

_Settings = TypeVar("_Settings", bound=PosttrainConfig)


def sft(  # noqa: PLR0913 - the promised entry point; all but four are keyword options
    base: str | Path,
    prompts: str | Path | PromptsConfig | None = None,
    out: str | Path = "posttrain",
    config: SftConfig | None = None,
    *,
    arm: str | None = None,
    scorer: AnyScorer | None = None,
    device: str = "cpu",
    force: bool = False,
    trust_remote_code: bool = False,
) -> PosttrainResult:
    """Fine-tune a base on responses: those of the file, or with ``config.on_policy`` its own right ones.

    Args:
        base: Folder or hub name of the base.
        prompts: File of prompts with responses; None takes ``config.prompts``.
        out: Folder of all arms that are compared; this one is written into ``out/<arm>/``, checkpoints into ``step_<n>/`` there.
        config: Settings.
        arm: Name of the arm; by default ``sft``, ``sft-onpolicy`` or ``sft-matched``.
        scorer: What judges samples for on-policy SFT: a specification or a function of response and answer.
        device: ``cpu`` or ``cuda``.
        force: Empty the folder of an earlier training of this arm and start again.
        trust_remote_code: Whether Python code in the folder of the base may run.

    Raises:
        ConfigError: A setting does not fit the model, the prompts, or another setting.
        InputError: The prompts are unusable.
        ModelError: The base is, or no sample of it is right.
        ArtifactError: The folder holds other work, or an arm beside this one saw other prompts.
        DependencyError: TRL or peft is not installed.
    """
    settings = settings_of("sft", SftConfig, config)
    return train(
        plan(base, prompts, out, settings, arm=arm, scorer=scorer, device=device, trust=trust_remote_code), force=force
    )


def grpo(  # noqa: PLR0913 - likewise
    base: str | Path,
    prompts: str | Path | PromptsConfig | None = None,
    out: str | Path = "posttrain",
    config: GrpoConfig | None = None,
    *,
    arm: str | None = None,
    scorer: AnyScorer | None = None,
    device: str = "cpu",
    force: bool = False,
    trust_remote_code: bool = False,
) -> PosttrainResult:
    """Train a base with GRPO and a verifiable reward: 1 for a right response, or the number that a function returns.

    Args:
        base: Folder or hub name of the base.
        prompts: File of prompts with answers; None takes ``config.prompts``.
        out: Folder of all arms that are compared; this one is written into ``out/<arm>/``, checkpoints into ``step_<n>/`` there.
        config: Settings.
        arm: Name of the arm; by default ``rl``.
        scorer: What judges responses: a specification or a function of response and answer; None takes ``config.scorer``.
        device: ``cpu`` or ``cuda``.
        force: Empty the folder of an earlier training of this arm and start again.
        trust_remote_code: Whether Python code in the folder of the base may run.

    Raises:
        ConfigError: A setting does not fit the model, the prompts, or another setting.
        InputError: The prompts are unusable.
        ModelError: The base is.
        ArtifactError: The folder holds other work, or an arm beside this one saw other prompts.
        DependencyError: TRL or peft is not installed.
    """
    settings = settings_of("grpo", GrpoConfig, config)
    return train(
        plan(base, prompts, out, settings, arm=arm, scorer=scorer, device=device, trust=trust_remote_code), force=force
    )


def settings_of(method: str, kind: type[_Settings], config: _Settings | None) -> _Settings:
    """The settings of a method; the defaults without any."""
    if config is not None and not isinstance(config, kind):
        raise ConfigError(f"{method} takes {kind.__name__}, not {type(config).__name__}; give its settings in one.")
    return config or kind()


def plan(
    base: str | Path,
    prompts: str | Path | PromptsConfig | None,
    out: str | Path,
    config: PosttrainConfig,
    *,
    arm: str | None = None,
    scorer: AnyScorer | None = None,
    device: str = "cpu",
    trust: bool = False,
) -> Arm:
    """Read and check everything that a training needs, and write nothing; `sft` and `grpo` say what it raises."""
    if device not in ("cpu", "cuda"):
        raise ConfigError(
            f"device '{device}' cannot train; give cpu or cuda, and choose cards with CUDA_VISIBLE_DEVICES."
        )
    if isinstance(prompts, str | Path):
        prompts = config.prompts.replace(file=str(prompts))
    if prompts is not None:
        config = config.model_copy(update={"prompts": prompts})
    require_trl("Post-training")
    _check_devices(device)
    model = LanguageModel("base", base, device=device, trust_remote_code=trust)
    found = Arm.read(default_name(config) if arm is None else arm, Path(out), model, config, scorer, n_processes()[1])
    found.check_beside()
    return found


def _check_devices(device: str) -> None:
    """Refuse several visible GPUs in one process, over which TRL's trainers would spread a step in another way."""
    import torch

    if device == "cuda" and n_processes()[1] == 1 and torch.cuda.device_count() > 1:
        raise ConfigError(
            f"{torch.cuda.device_count()} GPUs are visible to one process; set CUDA_VISIBLE_DEVICES=0, or start with "
            "torchrun --nproc-per-node."
        )


def default_name(config: PosttrainConfig) -> str:
    """Name of an arm that is given none."""
    if not isinstance(config, SftConfig):
        return "rl"
    return "sft" + ("-onpolicy" if config.on_policy else "") + ("-matched" if config.match_kl else "")


def train(arm: Arm, *, force: bool = False) -> PosttrainResult:
    """Train an arm, or go on with it, or return its finished result."""
    with _opened(arm, force) as (stage, done):
        if not done:
            ArmTraining(arm, stage).run()
    return PosttrainResult.load(arm.folder)


@contextmanager
def _opened(arm: Arm, force: bool) -> Iterator[tuple[Stage | None, bool]]:
    """The stage, which only the first process has, and whether it is finished, which all processes are told."""
    opened = partial(
        Stage.open, arm.folder, name=STAGE, config=arm.identity, models=arm.models, force=force, remake="refused"
    )
    index, count = n_processes()
    if count == 1:
        with opened() as stage:
            yield stage, stage.done
        return
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState(cpu=arm.base.device == "cpu")
    if index == 0:
        with opened() as stage:
            broadcast_object_list([stage.done])
            yield stage, stage.done
    else:
        found: list[Any] = broadcast_object_list([None])
        yield None, bool(found[0])
    state.wait_for_everyone()  # until the first process has written the result
