"""The options that every stage command has, declared once, and the run that they describe."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.launcher import SEVERAL, ranks_of_command

if TYPE_CHECKING:
    from mechprobe.pipeline.run import Run
    from mechprobe.run_config import RunConfig

DEFAULT_RUN = Path("runs/lab")
_PANEL = "Options of every stage"


def _option(*names: str, **settings: Any) -> Any:
    return typer.Option(*names, rich_help_panel=_PANEL, **settings)


@dataclass(frozen=True)
class Shared:
    """Values of the shared options."""

    run: Annotated[Path | None, _option("--run", "-r", help="Run folder.", show_default="runs/lab")] = None
    config: Annotated[
        Path | None, _option("--config", "-c", help="Settings of the run (TOML). Paths in it are relative to it.")
    ] = None
    lab: Annotated[
        str | None,
        _option("--lab", help="Shipped lab: shared-marker, own-markers, mechanisms, mechanisms-null. In runs/NAME."),
    ] = None
    set_: Annotated[
        list[str] | None,
        _option("--set", "-s", metavar="SECTION.KEY=VALUE", help="Override one setting. May be repeated."),
    ] = None
    models: Annotated[
        list[str] | None,
        _option("--models", "-m", metavar="NAME=PATH ...", help="Models by name: local folders or hub names."),
    ] = None
    seed: Annotated[int | None, _option("--seed", help="Seed of every random draw.")] = None
    device: Annotated[str | None, _option("--device", help="Device of models and crosscoder: cpu, cuda, cuda:1.")] = (
        None
    )
    model_dtype: Annotated[
        str | None,
        _option(
            "--model-dtype",
            metavar="auto|float32|bfloat16|float16",
            help="Dtype of the models. By default that of their files on a GPU, float32 on a CPU.",
        ),
    ] = None
    as_json: Annotated[bool, _option("--json", help="Print the result as JSON.")] = False
    dry_run: Annotated[bool, _option("--dry-run", help="Print what would be done and its cost. Write nothing.")] = False
    force: Annotated[bool, _option("--force", help="Make this stage again.")] = False
    no_upstream: Annotated[
        bool, _option("--no-upstream", help="Refuse, instead of making missing earlier stages first.")
    ] = False
    verbose: Annotated[
        bool,
        _option("--verbose", "-v", help="Print the whole report (run), or every verdict and the rule (intervene)."),
    ] = False
    trust_remote_code: Annotated[bool, _option("--trust-remote-code", help="Let model folders run their own code.")] = (
        False
    )

    def start(self, extra: dict[str, Any] | None = None, *, own_inputs: bool = False, **folders: Path | None) -> "Run":
        """The run of a command.

        Args:
            extra: Settings given by the command's own options.
            own_inputs: The command was given prompts, tasks or stage folders, which are not those of the embedded lab.
            folders: Stage folders outside the run, by attribute of `RunLayout`; None leaves a stage inside.

        Raises:
            ConfigError: The settings cannot be used, or the default run folder belongs to other models.
        """
        from mechprobe.models.devices import local_device
        from mechprobe.pipeline.run import Run
        from mechprobe.progress import activity
        from mechprobe.run_layout import RunLayout

        with activity("reading the settings"):
            layout = RunLayout(self.run or self._default_run()).placed(**folders)
            config = self._settings(layout.run_file, extra, own_inputs=own_inputs or bool(self.models))
        config = config.model_copy(update={"device": local_device(config.device)})
        return Run(config, layout, force=self.force, trust_remote_code=self.trust_remote_code)

    def _default_run(self) -> Path:
        """The run folder when none is given: every lab but the default one has its own."""
        from mechprobe.lab.summary import DEFAULT_LAB, shipped_run_file

        if self.lab is not None:
            shipped_run_file(self.lab)  # refuses another name, which may be no name of a folder
        return DEFAULT_RUN if self.lab in (None, DEFAULT_LAB) else DEFAULT_RUN.with_name(self.lab)

    def _settings(self, run_file: Path, extra: dict[str, Any] | None, *, own_inputs: bool) -> "RunConfig":
        from mechprobe.cli.options import parse_models
        from mechprobe.errors import ConfigError
        from mechprobe.lab.summary import DEFAULT_LAB, shipped_run_file
        from mechprobe.run_config import RunConfig, read_run_file
        from mechprobe.run_layout import holds_stages

        if self.lab is not None and (self.config is not None or own_inputs):
            raise ConfigError(
                "--lab names models, tasks and prompts; leave it out, or leave out --config and your own inputs."
            )
        config, start = self.config if self.lab is None else shipped_run_file(self.lab), None
        own = own_inputs and self.run is None
        if config is None and run_file.is_file() and not own:
            start = read_run_file(run_file.parent)
        elif config is None and not own_inputs and holds_stages(run_file.parent):
            raise ConfigError(
                f"{run_file} is missing, so the settings of the run are unknown; give --config FILE, or --models and --set."
            )
        elif config is None and not own_inputs:
            config = shipped_run_file(DEFAULT_LAB)
        models = parse_models(self.models) if self.models else None
        return RunConfig.build(
            config,
            self.set_ or (),
            models=models,
            seed=self.seed,
            device=self.device,
            dtype=self.model_dtype,
            extra=extra,
            start=start,
        )


def takes_shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the shared options; it receives them as its argument ``shared``."""
    name = command.__name__.replace("_", "-")
    own = [each for each in inspect.signature(command).parameters.values() if each.name != "shared"]
    common = [
        inspect.Parameter(
            each.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=each.default, annotation=each.type
        )
        for each in fields(Shared)
    ]

    @functools.wraps(command)
    def wrapped(**values: Any) -> None:
        shared = Shared(**{parameter.name: values.pop(parameter.name) for parameter in common})
        with ranks_of_command(name, given=repr((replace(shared, device=None), values))):
            command(shared=shared, **values)

    if name in SEVERAL:
        wrapped.__doc__ = f"{inspect.getdoc(command)}\n\nUnder torchrun, several processes divide the work."
    parameters = [each.replace(kind=inspect.Parameter.POSITIONAL_OR_KEYWORD) for each in [*own, *common]]
    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {each.name: each.annotation for each in parameters}
    return wrapped
