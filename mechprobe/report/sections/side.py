"""The stages beside the chain in short: emergence, drift and dynamics. Each has a page with more."""

from mechprobe.formatting import listing
from mechprobe.report.result import Link, Picture, Section
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.divergence import divergence_section
from mechprobe.report.sections.profiles import profiles_section, together_section
from mechprobe.report.sections.timeline import dips_sentence, order_sentences
from mechprobe.report.sections.weights import weights_section
from mechprobe.report.timeline.result import Timeline

_EMERGENCE = "Emergence: when features appear in training"
_DRIFT = "Drift: how far the models moved from base"
_DYNAMICS = "Dynamics: scores over training, and what moved first"


def emergence_section(files: RunFiles) -> Section:
    """The claim on SFT and RL in one sentence, and the curves."""
    found = files.emergence
    if found is None:
        return Section(id="emergence", title=_EMERGENCE, command="mechprobe emergence")
    says, *more = (
        found.claim.sentences if found.claim else [_arms_sentence({n: c[0].labels for n, c in found.arms.items()})]
    )
    caption = (
        "Upper panels: how much of the change between base and the last checkpoint is reached. Bands: 95 % bootstrap interval over the "
        "features of the first seed's dictionary; thin lines: further seeds."
    )
    page = files.layout.emergence / "report" / "index.html"
    link = Link(
        text="The page of emergence has overlaps, causal strength and every table",
        href="../emergence/report/index.html",
    )
    return Section(
        id="emergence",
        title=_EMERGENCE,
        says=says,
        paragraphs=more,
        pictures=[Picture(name="curves", title="Emergence curves", caption=caption)],
        links=[link] if page.is_file() else [],
    )


def _arms_sentence(labels: dict[str, tuple[str, ...]]) -> str:
    shown = listing(f"{name} ({len(checkpoints)} checkpoints)" for name, checkpoints in labels.items())
    return (
        f"Features were followed over training in {shown}; there are no arms of sft and of rl, so no claim was judged."
    )


def drift_sections(files: RunFiles) -> list[Section]:
    """The sections of the page of behaviour and drift."""
    found = files.drift
    return [
        divergence_section(found.divergence), profiles_section(found.probe), weights_section(found.weights), together_section(found.probe),
    ]  # fmt: skip


def drift_section(files: RunFiles) -> Section:
    """What the page of behaviour and drift says, with its first figure."""
    if not files.drift.folders:
        return Section(id="drift", title=_DRIFT, command="mechprobe drift")
    sections = drift_sections(files)
    told = [section for section in sections if section.says]
    commands = dict.fromkeys(section.command for section in sections if section.command)
    missing = [f"Not measured yet: {listing(f'`{each}`' for each in commands)}."] if commands else []
    return Section(
        id="drift",
        title=_DRIFT,
        says=told[0].says if told else "",
        paragraphs=[*(section.says for section in told[1:]), *missing],
        pictures=[picture for section in told for picture in section.pictures][:1],
        links=[Link(text="The page of behaviour and drift has every number", href="drift.html")],
    )


def dynamics_section(files: RunFiles, timeline: Timeline | None) -> Section:
    """What moved first, which curves dip and recover, and log-probabilities, with the timeline."""
    logprobs = _logprobs_sentences(files)
    if timeline is None:
        return Section(id="dynamics", title=_DYNAMICS, command="mechprobe dynamics", paragraphs=logprobs)
    orders = order_sentences(timeline)
    dips = dips_sentence(timeline) if "dynamics" not in timeline.missing else ""
    missing = [timeline.missing[stage] for stage in ("sweep", "dynamics", "logprobs") if stage in timeline.missing]
    unit = "optimizer steps" if timeline.axis == "steps" else "tokens of training"
    caption = (
        f"Everything that was measured along post-training, on one axis of {unit}. Strong lines stand for their panel, with 95 % "
        "intervals; thin lines are single tasks or benchmarks. Triangles: half of the change is reached."
    )
    says = orders[0] if orders else dips or "No arm has checkpoints whose steps are known."
    return Section(
        id="dynamics",
        title=_DYNAMICS,
        says=says if says == dips else f"What moved first: {says}",
        paragraphs=[
            *orders[1:],
            *([dips] if dips and says != dips else []),
            *logprobs,
            *([f"Not measured yet: {listing(f'`{each}`' for each in missing)}."] if missing else []),
        ],
        pictures=[Picture(name="timeline", title="All quantities over training", caption=caption)],
        links=[Link(text="The timeline has every quantity, half of its change, and lags", href="timeline.html")],
    )


def _logprobs_sentences(files: RunFiles) -> list[str]:
    """What the log-probabilities say of backtracking, arm by arm."""
    found = files.logprobs
    if found is None:
        return []
    return [
        f"Backtracking words in {verdict.arm}, on {found.n_tokens:,} tokens of {found.n_traces:,} traces: {verdict.label} ({verdict.reason})."
        for verdict in found.verdicts
    ]
