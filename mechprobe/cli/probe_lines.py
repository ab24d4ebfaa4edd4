"""The main numbers of a probe stage as lines of text."""

from math import isfinite
from typing import TYPE_CHECKING

from mechprobe.cli.printing import table_lines
from mechprobe.drift.probe.behaviour_result import NO_FALL
from mechprobe.formatting import bracketed, decimal, estimate, p_value

if TYPE_CHECKING:
    from mechprobe.drift.probe.behaviour_result import Behaviour
    from mechprobe.drift.probe.profile import Norm
    from mechprobe.drift.probe.result import ProbeResult
    from mechprobe.statistics import Interval

_MOST_MODELS = 14
"""Rows of the first table; of more models the last checkpoint of each arm is shown."""


def probe_lines(found: "ProbeResult") -> list[str]:
    """Profiles, drift with its null, collapses, transfer, probes and correlations, each with n."""
    behaviour = found.behaviour["right"]
    lines = _profiles(found, behaviour) + _drift(behaviour) + _collapses(behaviour) + _transfer(behaviour)
    lines += _linear(found) + _use(found) + _correlations(found)
    return [*lines, "", *found.notes]


def _profiles(found: "ProbeResult", behaviour: "Behaviour") -> list[str]:
    n = ", ".join(f"{skill} {count}" for skill, count in behaviour.skills.items())
    names = list(behaviour.profiles)
    if len(names) > _MOST_MODELS:
        names = [found.base, *(course.points[-1].model for course in behaviour.arms.values())]
    rows = {
        name: {skill: bracketed(score.corrected) for skill, score in behaviour.profiles[name].items()} for name in names
    }
    strict = [line for name in ("behaviour", "strict") if name in found.behaviour for line in _other_score(found, name)]
    return [
        f"Score in %, chance-corrected, with 95 % interval (n: {n})",
        *table_lines(rows, list(behaviour.skills), corner="model"),
        *strict,
    ]


def _other_score(found: "ProbeResult", name: str) -> list[str]:
    """Another score at base and the last checkpoints, in one line each."""
    behaviour = found.behaviour[name]
    what = {"behaviour": "rule or step named", "strict": "right, with the rule or step named"}[name]
    lines = []
    for model in (found.base, *(course.points[-1].model for course in behaviour.arms.values())):
        cells = ", ".join(f"{skill} {bracketed(score.raw)}" for skill, score in behaviour.profiles[model].items())
        lines.append(f"{name} ({what}) of {model}, in %: {cells}")
    return lines


def _drift(behaviour: "Behaviour") -> list[str]:
    columns = ["drift", "noise alone", "minus noise", "lost", "imbalance", "jaggedness"]
    rows = {}
    points = [point for course in behaviour.arms.values() for point in course.points]
    if len(points) > _MOST_MODELS:
        points = [course.points[-1] for course in behaviour.arms.values()]
    for point in points:
        drift = point.drift_l1
        rows[point.model] = {
            "drift": norm_text(drift), "noise alone": f"< {drift.null:.2f}", "minus noise": decimal(drift.corrected),
            "lost": norm_text(point.lost), "imbalance": norm_text(point.imbalance), "jaggedness": norm_text(point.jaggedness),
        }  # fmt: skip
    n = points[0].drift_l1.n
    lines = ["", f"Distance from base (L1 over skills) with an interval of at least 95 % (n = {n} items)"]
    lines += table_lines(rows, columns, corner="model")
    for name, course in behaviour.arms.items():
        if len(course.points) > 1:
            net = estimate(course.wandering, decimals=2)
            lines.append(
                f"path of {name}: {norm_text(course.path_l1)} over {len(course.points)} checkpoints; path over net drift {net}"
            )
    return lines


def norm_text(norm: "Norm") -> str:
    """``0.52 [0.31, 0.72]``."""
    return estimate(norm, decimals=2)


def _collapses(behaviour: "Behaviour") -> list[str]:
    lines = [line for course in behaviour.arms.values() for line in course.falls()]
    return ["", *(lines or [NO_FALL])]


def _transfer(behaviour: "Behaviour") -> list[str]:
    lines = []
    for course in behaviour.arms.values():
        model = course.points[-1].model
        if (found := behaviour.transfer.get(model)) is None:
            continue
        shown = f"none, because {found.reason}" if found.reason else _index(found.index)
        gains = f"mean gain in points {_signed(found.trained)} on trained tasks, {_signed(found.other)} on others"
        if isfinite(found.absolute.value):
            gains += f", the ratio {_index(found.absolute)}"
        lines.append(f"transferability index of {model}: {shown}; {gains} (n = {found.trained.n})")
    return lines


def _index(item: "Interval") -> str:
    return estimate(item, decimals=0, unit=" %")


def _signed(item: "Interval") -> str:
    return estimate(item, factor=100, decimals=0, signed=True)


def _linear(found: "ProbeResult") -> list[str]:
    lines = []
    for target in dict.fromkeys(each.target for each in found.linear):
        of_target = [each for each in found.linear if each.target == target]
        best = max(of_target, key=lambda each: each.selectivity)
        here = {each.model: each for each in of_target if (each.site, each.position) == (best.site, best.position)}
        shown = [
            name
            for name in (found.base, *(c.points[-1].model for c in found.behaviour["right"].arms.values()))
            if name in here
        ]
        cells = ", ".join(f"{name} {bracketed(here[name].accuracy)}" for name in shown)
        lines.append(
            f"probe of {target} at {best.site}, balanced accuracy in %: {cells}; shuffled labels {100 * best.control.value:.0f}, "
            f"chance {100 * best.chance:.0f} (held out: {best.held_out}, n = {best.accuracy.n})"
        )
    return ["", *lines] if lines else []


def _use(found: "ProbeResult") -> list[str]:
    models = [name for name in dict.fromkeys(each.model for each in found.use) if name != found.base]
    lines = []
    for model in models:
        rows = [each for each in found.use if each.model == model]
        cells = ", ".join(f"{each.skill} {each.across:.3f} ({each.split_half:.3f})" for each in rows)
        lines.append(f"use of features, {model} from base between halves (base from itself): {cells}")
    return lines


def _correlations(found: "ProbeResult") -> list[str]:
    rows = [each for each in found.correlations if isfinite(each.p)]
    if not found.correlations:
        return []
    if not rows:
        return ["No claim on correlations: no arm has 6 checkpoints."]
    rows = sorted(rows, key=lambda each: each.p)[:4]
    head = [
        f"drift correlates most with (of {len(found.numbers)} numbers, Spearman, permutation p, Holm over the numbers):"
    ]
    return head + [
        f"  {each.number}, {each.arm}{', detrended' if each.detrended else ''}: {each.rho:+.2f}, p = {p_value(each.p)}, "
        f"Holm {p_value(each.p_holm)} (n = {each.n} checkpoints)"
        for each in rows
    ]
