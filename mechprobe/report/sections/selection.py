"""The selected features."""

from mechprobe.formatting import listing
from mechprobe.report.result import JsonObject, SelectionSection


def selection_section(selection: JsonObject | None) -> SelectionSection | None:
    """The section, or None if `mechprobe select` has not run."""
    if selection is None:
        return None
    return SelectionSection(
        sentence=selection_sentence(selection),
        ids=[int(feature) for feature in selection["features"]],
        n_controls=len(selection["controls"]),
        note=selection["note"],
    )


def selection_sentence(selection: JsonObject) -> str:
    """Size of the selected set, its ranking, and how many features are task-agnostic."""
    chosen, agnostic = len(selection["features"]), len(selection["agnostic"])
    return (
        f"The {selection['ranking']} ranking selects {chosen} features; {agnostic} features pass the threshold on "
        f"every selection task ({listing(selection['tasks'])})."
    )
