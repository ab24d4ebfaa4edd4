"""``mechprobe logprobs``: log-probabilities of the tokens of fixed traces under every model, by class of token and over training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy import ndarray

from mechprobe.dynamics.logprobs.backtracking import Backtracking
from mechprobe.dynamics.logprobs.classes import CLASS_RULE
from mechprobe.dynamics.logprobs.config import LogprobsConfig
from mechprobe.dynamics.logprobs.learning import HALF_RULE, learning_rows
from mechprobe.dynamics.logprobs.matching import matched_rows
from mechprobe.dynamics.logprobs.measure import TokenFiles, model_tokens, sampler_checks
from mechprobe.dynamics.logprobs.result import (
    RESULT_FILE,
    TABLE_FILE,
    TRACES_FILE,
    ContrastRow,
    ExcessRow,
    LearningRow,
    LogprobsResult,
    OrderRow,
    SamplerRow,
)
from mechprobe.dynamics.logprobs.rows import BASE, METRICS, TEACHER, SourceTable, histograms, model_rows
from mechprobe.dynamics.logprobs.traces import Trace
from mechprobe.dynamics.logprobs.work import LogprobsWork
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.files import write_bytes, write_json
from mechprobe.models.family import ModelFamily
from mechprobe.progress import activity, progress
from mechprobe.records import Outcomes
from mechprobe.stage_folder import Stage

FIGURE_FILE = "logprobs.png"


def log_probs(
    family: ModelFamily,
    traces: "Path | str | Outcomes | Sequence[Trace] | None" = None,
    *,
    out: Path | str = "logprobs",
    config: LogprobsConfig | None = None,
    arms: EmergenceConfig | None = None,
    generated: "Path | str | Outcomes | None" = None,
    force: bool = False,
) -> LogprobsResult:
    """Score the tokens of fixed traces under every model: log-probability, entropy and rank, against base and a teacher.

    Args:
        family: Base, checkpoints (``rl@step_000040``) and other models.
        traces: A file of prompts with responses, the folder of a finished evaluate stage, outcomes with their samples, or traces. None
            reads ``config.traces``.
        out: Stage folder for ``logprobs.json``, the figure, the traces and ``tokens/``, the values of every token.
        config: Settings; the defaults if None.
        arms: Base and arms: ``base``, ``arms`` and ``final_steps`` are read.
        generated: Evaluated responses (a folder or outcomes) in which backtracking is counted; by default those that ``traces`` gives.
        force: Make the stage again.

    Returns:
        The result; a finished stage is read back, and an interrupted one goes on with the next model.

    Raises:
        ConfigError: A model or a class is unknown, or there are no traces.
        InputError: A trace cannot be used, or the teacher's values are those of other tokens.
        ModelError: The teacher has another tokenizer, or a logit is not finite.
        ArtifactError: ``out`` holds other work.
    """
    work = LogprobsWork.of(family, traces, config or LogprobsConfig(), arms or EmergenceConfig(), generated)
    with Stage.open(out, **work.stage, force=force) as stage:
        if not stage.done:
            files = TokenFiles(stage.folder)
            sampler = _score(work, files)
            _write(stage, work, files, sampler)
    return LogprobsResult.load(out)


def _score(work: LogprobsWork, files: TokenFiles) -> list[SamplerRow]:
    """Score every model that has no file yet, and compare with the sampler where it gave log-probabilities."""
    traces, rows = work.traces.traces, list[SamplerRow]()
    sampled = {trace.source for trace in traces if trace.sampled}
    n_tokens = sum(len(trace.ids) for trace in traces)
    with progress(n_tokens * len(work.models), "log-probabilities", unit="tokens") as advance:
        for name in work.models:
            model, size = work.family[name], work.config.batch_tokens
            if files.path(name).is_file():
                advance.found(n_tokens)
            else:
                found = model_tokens(
                    model, traces, batch_tokens=size, advance=lambda n, name=name: advance(n, model=name)
                )
                files.write(name, {key: _stored(values) for key, values in found.items()})
            if name in sampled:
                checks = sampler_checks(model, traces, batch_tokens=size)
                rows += [
                    SamplerRow(model=name, temperature=t, n=n, largest=most, mean=mean) for t, n, most, mean in checks
                ]
            model.release()
    return rows


def _stored(values: ndarray) -> ndarray:
    """float32 and int32 keep seven digits of a log-probability in half the space."""
    return values.astype(np.float32 if values.dtype.kind == "f" else np.int32)


def _write(stage: Stage, work: LogprobsWork, files: TokenFiles, sampler: list[SamplerRow]) -> None:
    from mechprobe.dynamics.logprobs.figure import picture

    with activity("tables and intervals"):
        result = _result(stage.folder, work, files, sampler)
    result.save(stage.folder / RESULT_FILE)
    write_bytes(stage.folder / FIGURE_FILE, picture(result))
    table = work.table
    files.write("traces", {
        "trace": table.trace.astype(np.int32), "position": table.position.astype(np.int32), "id": table.ids.astype(np.int32),
        "class": table.classes.astype(np.int32), "teacher": table.teacher,
    })  # fmt: skip
    described = [
        {"id": t.id, "prompt_id": t.prompt_id, "task": t.task, "source": t.source, "n_prompt": len(t.prompt_ids), "n_text": t.n_text}
        for t in work.traces.traces
    ]  # fmt: skip
    write_json(stage.folder / TRACES_FILE, described)
    stage.finish(
        outputs=[RESULT_FILE, FIGURE_FILE, TRACES_FILE, TABLE_FILE, *map(files.name, work.models)],
        counts={"traces": result.n_traces, "tokens": result.n_tokens, "models": len(work.models)},
        results={"backtracking": {verdict.arm: verdict.label for verdict in result.verdicts}},
        seed=work.config.seed,
    )


def _result(folder: Path, work: LogprobsWork, files: TokenFiles, sampler: list[SamplerRow]) -> LogprobsResult:
    values = {name: files.read(name) for name in work.models}
    logs = {name: found["log_prob"].astype(np.float64) for name, found in values.items()}
    deltas = {name: log_prob - logs[work.base] for name, log_prob in logs.items() if name != work.base}
    references = _references(work, logs)
    rows, bins, matched, learned = [], [], [], []
    courses = work.courses()
    last = [(arm, course.models[-1]) for arm, course in courses.items()]
    for name in work.traces.sources:
        source = SourceTable.of(work.table, name, work.config)
        for model in work.models:
            compared = {key: reference for key, reference in references.items() if (key, model) != (BASE, work.base)}
            own = {"log_prob": logs[model], "entropy": values[model]["entropy"], "rank": values[model]["rank"]}
            rows += list(model_rows(source, model, own, compared, work.config))
            bins += list(histograms(source, model, logs[model], compared))
        matched += list(matched_rows(source, deltas, last, work.config))
        for arm, course in courses.items():
            if len(course.steps) > 1:
                learned += list(learning_rows(source, arm, course, deltas))
    counted = None if work.generated is None else Backtracking(work.generated, work.models, work.config)
    verdicts = [] if counted is None else [counted.verdict(arm, course) for arm, course in courses.items()]
    return LogprobsResult(
        folder=folder, base=work.base, models=work.models, arms={arm.name: arm.checkpoints for arm in work.arms},
        sources=work.traces.sources, classes=work.table.names, n_traces=len(work.traces.traces), n_tokens=len(work.table.ids),
        teacher=work.teacher, rows=tuple(rows), histograms=tuple(bins),
        excess=tuple(row for row in matched if isinstance(row, ExcessRow)),
        contrasts=tuple(row for row in matched if isinstance(row, ContrastRow)),
        learning=tuple(row for row in learned if isinstance(row, LearningRow)),
        order=tuple(row for row in learned if isinstance(row, OrderRow)),
        backtracking=() if counted is None else tuple(counted.rows()),
        verdicts=tuple(verdict for verdict in verdicts if verdict is not None), sampler=tuple(sampler),
        rules={**METRICS, "classes": CLASS_RULE, "half_step": HALF_RULE}, notes=tuple(_notes(work, sampler)),
    )  # fmt: skip


def _references(work: LogprobsWork, logs: Mapping[str, ndarray]) -> dict[str, ndarray]:
    """Log-probabilities of every token under base, and under the teacher where there is one."""
    found = {BASE: logs[work.base]}
    if work.config.teacher:
        found[TEACHER] = logs[work.config.teacher]
    elif np.isfinite(work.table.teacher).any():
        found[TEACHER] = work.table.teacher
    return found


def _notes(work: LogprobsWork, sampler: Sequence[SamplerRow]) -> list[str]:
    notes = list(work.traces.notes)
    even = [
        name for name, course in work.courses().items() if course.spaced_by == "checkpoints" and len(course.steps) > 1
    ]
    if even:
        notes.append(
            f"A step of {', '.join(even)} is unknown, so its checkpoints count 1, 2, 3... (emergence.final_steps)."
        )
    if work.config.compare == "bytes" and any(trace.teacher for trace in work.traces.traces):
        notes.append(
            "The teacher is compared in bits per byte of whole responses only, because its tokens may be others."
        )
    if work.config.clip[0] >= 1 and (work.teacher or len(work.models) > 1):
        notes.append("clip_low is 0 by definition while logprobs.clip[0] is 1 or more, because r is never below 0.")
    notes += [
        f"{row.model} differs from its sampler's log-probabilities at temperature {row.temperature:g} by up to {row.largest:.2g} nats; "
        "the sampler may give them before temperature or filters."
        for row in sampler
        if row.largest > 0.05
    ]
    return notes
