"""What a ``logprobs`` stage reads and whether it can: checks before any work, and the lines of ``--dry-run``."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mechprobe.dynamics.checkpoints import ArmSteps, arm_steps
from mechprobe.dynamics.logprobs.classes import TokenClasses
from mechprobe.dynamics.logprobs.config import LogprobsConfig
from mechprobe.dynamics.logprobs.token_table import TokenTable
from mechprobe.dynamics.logprobs.trace_file import read_traces
from mechprobe.dynamics.logprobs.traces import Trace, TraceSet, traces_of_outcomes
from mechprobe.emergence.arms import Arm, all_arms, find_arms, last_of_arms
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.stage import load_outcomes
from mechprobe.files import dump_json, sha256_bytes
from mechprobe.models.family import ModelFamily
from mechprobe.records import Outcomes


@dataclass(frozen=True)
class LogprobsWork:
    """The checked arguments of a stage.

    Attributes:
        family: Base and the models.
        traces: What they read.
        table: Every response token of the traces.
        arms: The arms of training; an arm without checkpoints has one model.
        base: Name of base.
        generated: Evaluated responses, in which words of backtracking are counted; None without.
    """

    family: ModelFamily
    config: LogprobsConfig
    settings: EmergenceConfig
    traces: TraceSet
    table: TokenTable
    arms: tuple[Arm, ...]
    generated: Outcomes | None

    @classmethod
    def of(
        cls,
        family: ModelFamily,
        traces: "Path | str | Outcomes | Sequence[Trace] | None",
        config: LogprobsConfig,
        arms: EmergenceConfig,
        generated: "Path | str | Outcomes | None" = None,
    ) -> "LogprobsWork":
        """Check the arguments; no weights are loaded. Errors are those of `log_probs`."""
        if arms.base not in family:
            raise ConfigError(
                f"emergence.base is '{arms.base}', but the models are {', '.join(family.names)}; name one of them."
            )
        if config.teacher and config.teacher not in family:
            raise ConfigError(
                f"logprobs.teacher is '{config.teacher}', but the models are {', '.join(family.names)}; name one of them."
            )
        if len(family) < 2:
            raise ConfigError(
                f"{arms.base} is the only model, so there is none to compare it with; give another with --models."
            )
        found = find_arms(family.names, arms) if arms.arms else all_arms(family.names, arms.base, arms.final_steps)
        classes = TokenClasses(family.tokenizer, config)
        read, evaluated = read_sources(family, traces, config, arms.base)
        chosen = TraceSet.of(read, family, config)
        table = TokenTable.of(chosen.traces, classes, teacher=config.compare == "tokens")
        generated = evaluated if generated is None else generated
        outcomes = load_outcomes(generated) if isinstance(generated, str | Path) else generated
        return cls(family, config, arms, chosen, table, tuple(found), outcomes)

    @property
    def base(self) -> str:
        """Name of base."""
        return self.settings.base

    @property
    def models(self) -> tuple[str, ...]:
        """Base first, then the arms' models in order, then the others."""
        known = [self.base, *(name for arm in self.arms for name in arm.checkpoints), *self.family.names]
        return tuple(dict.fromkeys(known))

    @cached_property
    def teacher(self) -> str:
        """Where the teacher's values come from; empty without a teacher."""
        if self.config.teacher:
            return self.config.teacher
        given = any(trace.teacher for trace in self.traces.traces)
        return f"{self.config.teacher_field} of the traces" if given else ""

    def courses(self) -> dict[str, ArmSteps]:
        """Arm → its models and steps."""
        return {arm.name: arm_steps(arm, self.base, self.settings) for arm in self.arms}

    @property
    def stage(self) -> dict[str, Any]:
        """Arguments of `mechprobe.stage_folder.Stage.open`."""
        models = {name: self.family[name].fingerprint for name in self.models}
        return {"name": "logprobs", "config": self.identity, "models": models}

    @property
    def identity(self) -> dict[str, Any]:
        """What the result depends on beside the weights."""
        records = [] if self.generated is None else [
            [r.model, r.task, r.sample_id, r.draw, r.outcome, r.finish, r.n_response_tokens, r.response] for r in self.generated.records
        ]  # fmt: skip
        return {
            **self.config.model_dump(mode="json", exclude={"traces", "teacher_tokenizer", "text", "checkpoints"}),
            **self.settings.model_dump(mode="json", include={"base", "arms", "final_steps"}),
            "traces": self.traces.hash,
            "generated": sha256_bytes(dump_json(records).encode()) if records else "",
            "models": list(self.models),
            **self.family.identity,
        }

    def plan(self) -> tuple[list[str], dict[str, Any]]:
        """What would be scored, as lines and as JSON values."""
        table, traces = self.table, self.traces.traces
        tokens = {name: int((table.classes == index).sum()) for index, name in enumerate(table.names)}
        lines = [
            f"{len(self.models)} models × {len(traces):,} traces of {', '.join(self.traces.sources)}: {len(table.ids):,} response tokens",
            "classes: " + ", ".join(f"{name} {n:,}" for name, n in tokens.items() if n),
            *(f"arm {arm.name}: {', '.join(arm.checkpoints)} (spaced by {arm.spaced_by})" for arm in self.arms),
            f"teacher: {self.teacher or 'none'}",
            *self.traces.notes,
        ]
        return lines, {"models": list(self.models), "traces": len(traces), "tokens": len(table.ids), "classes": tokens}


def read_sources(
    family: ModelFamily, traces: "Path | str | Outcomes | Sequence[Trace] | None", config: LogprobsConfig, base: str
) -> tuple[list[Trace], "Path | Outcomes | None"]:
    """The traces, and the outcomes that they come from."""
    if traces is None or (isinstance(traces, str | Path) and not Path(traces).is_dir()):
        source = config.traces if traces is None else config.traces.model_copy(update={"file": str(traces)})
        if not source.file:
            raise ConfigError(
                "No traces are given; set logprobs.traces.file, or give the folder of a finished evaluate stage."
            )
        if config.writers:
            raise ConfigError(
                f"logprobs.writers ({', '.join(config.writers)}) chooses evaluated responses, but the traces are those of {source.file}; "
                "leave one of them out."
            )
        return read_traces(family, config.replace(traces=source)), None
    if isinstance(traces, str | Path | Outcomes):
        outcomes = traces if isinstance(traces, Outcomes) else load_outcomes(traces)
        models = [name for name in outcomes.models if name in family]
        others = [name for name in models if name != base]
        writers = config.writers or [name for name in (base, *last_of_arms(others)) if name in models]
        if not writers:
            raise InputError(
                f"None of the models {', '.join(family.names)} was evaluated; evaluate them, or give a file of traces."
            )
        return traces_of_outcomes(outcomes, writers, family, config), outcomes
    return list(traces), None
