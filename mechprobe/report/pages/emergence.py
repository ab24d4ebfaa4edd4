"""The report of an emergence stage: one self-contained HTML file, the same as Markdown, and the figures as PNG."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mechprobe.emergence.result import Emergence
from mechprobe.files import dump_json, write_bytes, write_text
from mechprobe.report.figures.emergence import causal_figure, curves_figure, overlap_figure, pairs_figure
from mechprobe.stage_folder import Stage

_DPI = 160
_NOTES = {
    "curves": "Emergence curves. Bands: 95 % bootstrap interval over the features of the first seed's dictionary; thin "
    "lines: further seeds. The upper panels say how much of the change between base and the last checkpoint is there.",
    "overlap": "Features of highest NRN: what two checkpoints have in common, in one dictionary over base and checkpoints, in "
    "percent. Of several seeds the mean, and [smallest, largest].",
    "pairs": "The same for dictionaries of base and one checkpoint each, trained apart and matched by decoder (Hungarian). "
    "Read against the number in the title: two dictionaries of the same models that differ in their seed alone.",
    "causal": "Causal strength by integrated gradients through the reconstruction (RelIE, arXiv 2509.05291). Bands: 95 % "
    "bootstrap interval over prompts.",
}


def emergence_report(folder: Path | str) -> Path:
    """Write ``report/index.html``, ``report/report.md`` and ``report/figures/*.png`` into an emergence folder.

    Raises:
        ArtifactError: The folder holds no finished emergence stage.
    """
    folder = Path(folder)
    data = json.loads(dump_json(Emergence.load(folder).to_json()))
    with Stage.open(
        folder / "report", name="emergence-report", config={}, inputs={"emergence": folder}, remake=True
    ) as stage:
        if not stage.done:
            pictures = {name: _png(figure) for name, figure in draw_emergence(data).items()}
            files = {f"figures/{name}.png": content for name, content in pictures.items()}
            for name, content in files.items():
                write_bytes(stage.folder / name, content)
            write_text(stage.folder / "index.html", _page(data, pictures))
            write_text(stage.folder / "report.md", _markdown(data, list(pictures)))
            stage.finish(outputs=["index.html", "report.md", *files])
    return folder / "report" / "index.html"


def draw_emergence(data: Mapping[str, Any]) -> dict[str, Figure]:
    """The figures whose data are there, by name."""
    arms = data["arms"]
    spreads = data["over_seeds"]
    figures = {"curves": curves_figure(arms), "overlap": overlap_figure(arms, spreads)}
    if data["pairs"]:
        labels = {name: arms[name][0]["labels"] for name in data["pairs"]}
        figures["pairs"] = pairs_figure(data["pairs"], labels, spreads)
    if data["causal"]:
        figures["causal"] = causal_figure(data["causal"], arms)
    return figures


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()


def claim_rows(data: Mapping[str, Any]) -> list[list[str]]:
    """One row for each word of the claim: word, what was found, SFT, RL, differences per seed."""
    claim = data["claim"]
    if claim is None:
        return []
    return [
        [
            clause["word"],
            "holds" if clause["holds"] else "not shown",
            clause["number"],
            _text(clause["sft"]),
            _text(clause["rl"]),
            "; ".join(map(_interval_text, clause["differences"])),
        ]
        for clause in claim["clauses"]
    ]


def arm_rows(data: Mapping[str, Any]) -> list[list[str]]:
    """One row for each arm and seed: live features, kinds, half of the change, spacing."""
    rows = []
    for name, courses in data["arms"].items():
        for course in courses:
            kinds = ", ".join(f"{count} {kind}" for kind, count in course["kinds"].items() if count)
            half = course["curves"]["half_norm"][0]
            live = f"{course['n_alive']:,}"
            rows.append([name, str(course["seed"]), live, kinds, _interval_text(half), course["spaced_by"]])
    return rows


def overlap_rows(data: Mapping[str, Any]) -> list[list[str]]:
    """One row for each arm and two neighboring checkpoints: overlaps of the sets of highest NRN, over seeds."""
    rows = []
    for name, courses in data["arms"].items():
        labels, found = courses[0]["labels"], data["over_seeds"][name]
        for index, (first, second) in enumerate(pairwise(labels)):
            spreads = (found.get(key) for key in ("overlap", "jaccard", "pairs_overlap"))
            cells = [_seeds_text(spread, index, index + 1) for spread in spreads]
            rows.append([name, f"{first}, {second}", str(len(courses)), *cells])
    return rows


def causal_rows(data: Mapping[str, Any]) -> list[list[str]]:
    """One row for each arm and checkpoint: what of causal strength moved, and NRN against RelIE."""
    return [
        [name, label, _interval_text(moved), _interval_text(correlation), _text(course["departure_bias"][place])]
        for name, course in data["causal"].items()
        for place, (label, moved, correlation) in enumerate(
            zip(data["arms"][name][0]["labels"], course["departure"], course["rank_correlation"], strict=True)
        )
    ]


def quality_rows(data: Mapping[str, Any]) -> list[list[str]]:
    """One row for each dictionary: smallest FVE over its models, L0, dead share."""
    return [
        [name, _text(min(_finite(item["fve"].values()), default=None)), _text(item["l0"], 1), _text(item["dead_frac"])]
        for name, item in data["quality"].items()
    ]


_CLAIM_HEAD = ["word", "found", "number", "sft", "rl", "sft − rl, per seed"]
_ARM_HEAD = ["arm", "seed", "live features", "kinds", "half of the change at", "progress by"]
_OVERLAP_HEAD = ["arm", "checkpoints", "seeds", "|A∩B| / top", "Jaccard", "|A∩B| / top, trained apart"]
_CAUSAL_HEAD = [
    "arm",
    "checkpoint",
    "share that moved",
    "rank correlation of NRN and RelIE",
    "draws minus share",
]
_QUALITY_HEAD = ["dictionary", "smallest FVE", "L0", "dead share"]

_CAUSAL = (
    "Where prompts are few their noise raises a share of absolute differences and draws a rank correlation towards 0, in the value and "
    "once more in the draws of its interval. The last column is the mean of the draws minus the share: where it is clearly above 0, the "
    "share itself is too high by about as much or more."
)


def _sections(data: Mapping[str, Any]) -> list[tuple[str, list[str], list[str], list[list[str]]]]:
    """Title, paragraphs, head and rows of every table."""
    claim = data["claim"]
    said = (
        [*claim["sentences"], claim["rule"]] if claim else ["There are no arms sft and rl: the claim was not judged."]
    )
    return [
        ("SFT early and specialized, RL restrained and continuing?", said, _CLAIM_HEAD, claim_rows(data)),
        ("Arms", [f"Layout: {data['layout']}.", *data["interval_notes"]], _ARM_HEAD, arm_rows(data)),
        ("Overlap of neighboring checkpoints", [], _OVERLAP_HEAD, overlap_rows(data)),
        *([("Causal strength (RelIE)", [_CAUSAL], _CAUSAL_HEAD, causal_rows(data))] if data["causal"] else []),
        ("Dictionaries on held-out tokens", [], _QUALITY_HEAD, quality_rows(data)),
    ]


def _page(data: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    parts = ["<h1>Emergence of features</h1>"]
    for title, paragraphs, head, rows in _sections(data):
        parts += [f"<h2>{escape(title)}</h2>", *(f"<p>{escape(text)}</p>" for text in paragraphs)]
        if rows:
            cells = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
            cells += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
            parts.append("<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>")
    for name, content in pictures.items():
        source = base64.b64encode(content).decode("ascii")
        caption = escape(_NOTES[name])
        parts.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{source}"><figcaption>{caption}</figcaption></figure>'
        )
    return _HTML.format(body="\n".join(parts))


def _markdown(data: Mapping[str, Any], names: Sequence[str]) -> str:
    lines = ["# Emergence of features"]
    for title, paragraphs, head, rows in _sections(data):
        lines += ["", f"## {title}", *(line for text in paragraphs for line in ("", text))]
        if rows:
            lines += ["", _row(head), _row(["---"] * len(head)), *map(_row, rows)]
    for name in names:
        lines += ["", f"![{_NOTES[name]}](figures/{name}.png)", "", _NOTES[name]]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _finite(values: Any) -> list[float]:
    return [value for value in values if value is not None]


def _text(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _interval_text(item: Sequence[Any]) -> str:
    """``value [low, high]``; says so where there is no interval."""
    value, low, high = item[:3]
    if value is None:
        return "-"
    return f"{_text(value)} [no interval]" if low is None else f"{_text(value)} [{_text(low)}, {_text(high)}]"


def _seeds_text(spread: Mapping[str, Any] | None, row: int, column: int) -> str:
    """One cell of a matrix over seeds, ``mean [smallest, largest]``."""
    return "-" if spread is None else _interval_text([spread[end][row][column] for end in ("mean", "low", "high")])


_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Emergence of features</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
table {{ border-collapse: collapse; font-size: 13px; margin: 1rem 0; }}
th, td {{ text-align: left; padding: 0.25rem 0.7rem; border-bottom: 1px solid #ddd; vertical-align: top; }}
figure {{ margin: 2rem 0; }} img {{ max-width: 100%; }} figcaption {{ color: #555; font-size: 13px; }}
</style></head><body>
{body}
</body></html>
"""
