"""The first screen: one sentence, one figure, three numbers, the quality gate, and five answers."""

from collections.abc import Mapping
from typing import Any

from mechprobe.formatting import decimal, interval, listing, percent, points
from mechprobe.interventions.verdicts.rule import DAMAGE
from mechprobe.report.result import FirstScreen, Gate, JsonObject, KeyNumber, Link, Picture, Section
from mechprobe.report.run_files import RunFiles
from mechprobe.report.sections.answers import answers, best_rival
from mechprobe.report.sections.behaviour import ordered_accuracy
from mechprobe.report.sections.interventions import rivals_picture
from mechprobe.report.sections.plain_verdict import main_rows, plain_verdict

Row = Mapping[str, Any]


def first_screen(files: RunFiles, sections: list[Section]) -> FirstScreen:
    """What the page says before anything else. ``sections`` are those of the page, for a figure where there is no verdict."""
    results = files.interventions
    sentence = plain_verdict(results, trusted=files.trusted) if results else ""
    return FirstScreen(
        sentence=sentence or _none_yet(files),
        figure=_figure(files, sections),
        numbers=(_effect_numbers(results) if results and main_rows(results) else _early_numbers(files))[:3],
        gate=quality_gate(files.quality),
        answers=answers(files),
    )


def _none_yet(files: RunFiles) -> str:
    if files.interventions:
        return "The interventions ran, and no edit was judged, so there is no causal verdict."
    command = files.stages["intervene"].place.command
    return f"No causal verdict yet: `{command}` gives it."


def _figure(files: RunFiles, sections: list[Section]) -> Picture | None:
    """The rivals; without them, the effects; without a verdict, the first figure of the run."""
    if files.interventions:
        rivals = rivals_picture(files.interventions)
        if rivals is not None:
            return rivals
        sections = [section for section in sections if section.id == "interventions"]
    return next((picture for section in sections for picture in section.pictures), None)


def without_figure(section: Section, figure: Picture | None) -> Section:
    """A section whose figure stands on the first screen, with a link to it in its place."""
    if figure is None or figure.name not in {picture.name for picture in section.pictures}:
        return section
    link = Link(text=f"The figure is at the top of the page: {figure.title}", href=f"#figure-{figure.name}")
    pictures = [picture for picture in section.pictures if picture.name != figure.name]
    return section.model_copy(update={"pictures": pictures, "links": [link, *section.links]})


def _effect_numbers(results: JsonObject) -> list[KeyNumber]:
    """The effect in the base, the effect in the tuned model, and the strongest of what they are compared with."""
    rows = main_rows(results)
    found = [_effect_number(row, results["pair"][0]) for row in rows]
    for row in rows:
        found += [_rival_number(results, row)]
    return [each for each in found if each is not None]


def _effect_number(row: Row, base: str) -> KeyNumber:
    n_features = f"{row['n_features']} features" if row.get("n_features") else "Features"
    added = row["model"] == base
    what = "put into" if added else "taken out of"
    label = f"{n_features} {what} {row['model']}" if row["edit"] == "transplant" else f"{row['edit']} in {row['model']}"
    share = row.get("share_interval")
    change = row["effect"] if added else _turned(row["effect"])
    return KeyNumber(
        label=f"{'Sufficiency' if added else 'Necessity'}: {label}",
        value=f"{_points(change)} points",
        details=[
            _interval_words(change),
            *([f"{interval(share)} % of the ceiling"] if share else []),
            *(["the edit damages the model"] if row["verdict"] == DAMAGE else []),
            f"n = {row['n']:,}",
        ],
    )


def _turned(item: Any) -> list[float | None]:
    """An effect in the claimed direction, a loss, as a change of accuracy."""
    value, low, high = (None if part is None else -part for part in item)
    return [value, high, low]


def _rival_number(results: JsonObject, row: Row) -> KeyNumber | None:
    """The best rival of equal or lower rank; without rivals, the random sets."""
    best = best_rival(results, row)
    if best is not None:
        return KeyNumber(
            label=f"Best rival in {row['model']}: {best['name']}",
            value=f"{_points(best['effect'])} points",
            details=[
                _interval_words(best["effect"]),
                f"the set minus it: {interval(best['difference'], signed=True).replace('-', '−')}",
                f"n = {row['n']:,}",
            ],
        )
    if row.get("n_random") is None or row.get("random_max") is None:
        return None
    p = f"p = {row['p_random']:.2g}" if row.get("p_random") is not None else ""
    return KeyNumber(
        label=f"Largest of {row['n_random']} random sets in {row['model']}",
        value=f"{points(row['random_max'])} points",
        details=[
            *filter(None, [f"mean {points(row['random_mean'])}" if row.get("random_mean") is not None else "", p]),
            f"n = {row['n']:,}",
        ],
    )


def _points(item: Any) -> str:
    """The change in the claimed direction, in points."""
    return points((item or [None])[0]).replace("-", "−")


def _interval_words(item: Any) -> str:
    shown = interval(item, signed=True).partition(" (")[2].rstrip(")")
    return f"95 % interval {shown.replace('-', '−')}" if shown else "no interval"


def _early_numbers(files: RunFiles) -> list[KeyNumber]:
    """Where there is no verdict: the largest gain, the ceiling, and the lowest FVE, as far as they were measured."""
    found = []
    accuracy = ordered_accuracy(files)
    tuned = [name for name in accuracy if name != files.base]
    if files.base in accuracy and tuned:
        gains = [
            (accuracy[name][task].value - first.value, name, task)
            for name in tuned
            for task, first in accuracy[files.base].items()
            if task in accuracy[name]
        ]
        most, name, task = max(gains)
        cells = accuracy[name][task], accuracy[files.base][task]
        found.append(KeyNumber(label=f"{'Largest gain' if most > 0 else 'No model gains; best'}: {name} on {task}", value=f"{percent(cells[1].value)} → {percent(cells[0].value)} %",
                               details=[f"95 % interval {interval(cells[0]).partition(' (')[2].rstrip(')')}", f"{files.base} {interval(cells[1])} %", f"n = {cells[0].n:,}"]))  # fmt: skip
    if files.ceilings:
        site = files.ceilings.sites[files.ceilings.chosen]
        n = max(files.ceilings.n.values())
        found.append(KeyNumber(label=f"Ceiling at {files.ceilings.chosen}", value=f"{percent(site.sufficiency_share)} % of the gain",
                               details=[f"necessity {percent(site.necessity_share)} %", f"n = {n:,} per task"]))  # fmt: skip
    if files.quality and files.quality["models"]:
        name, lowest = min(
            ((name, one["fve"]) for name, one in files.quality["models"].items()), key=lambda one: one[1]
        )
        found.append(KeyNumber(label=f"Lowest FVE: {name}", value=decimal(lowest, 3),
                               details=[f"n = {files.quality['n_rows']:,} held-out tokens"]))  # fmt: skip
    return found


def quality_gate(quality: JsonObject | None) -> Gate:
    """Whether the crosscoder passed, and its worst value beside each threshold."""
    if quality is None:
        return Gate(state="not judged", values=["The crosscoder has not been measured on held-out tokens."])
    limits, models = quality["gate"], quality["models"]
    fve = {name: one.get("fve_ordinary") or one["fve"] for name, one in models.items()}
    recovered = {name: one["ce_recovered"] for name, one in models.items() if one.get("ce_recovered") is not None}
    values = []
    for label, found, limit in (("FVE", fve, "min_fve"), ("CE recovered", recovered, "min_ce_recovered")):
        if found and limit in limits:
            name = min(found, key=lambda model: found[model])
            values.append(f"{label} {decimal(found[name], 3)} in {name}, the lowest (threshold {limits[limit]:g})")
    if "max_dead_share" in limits:
        dead, most = percent(quality["dead_share"], 1), percent(limits["max_dead_share"])
        values.append(f"{dead} % of the features dead (at most {most} %)")
    failures = listing(quality["failures"])
    return Gate(state="passed" if quality["trusted"] else "failed", values=[*values, *([failures] if failures else [])])
