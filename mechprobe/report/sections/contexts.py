"""Contexts of features: tokens with the shade of their activation, one line per read-out."""

from collections.abc import Sequence

from mechprobe.report.result import ContextLine, JsonObject, TokenRun

N_SHADES = 5
"""Number of background shades; each has one CSS class, so that tokens need no style attribute."""


def context_lines(example: JsonObject, models: Sequence[str]) -> list[ContextLine]:
    """One line under the joint read-out, then one for every model that the example has."""
    activations: dict[str, list[float]] = example["activations"]
    largest = max(max(values, default=0.0) for values in activations.values())
    return [
        ContextLine(
            name=name,
            runs=_runs(example["tokens"], activations[name], largest, example["peak"] if name == "joint" else -1),
            largest=f"{max(activations[name], default=0.0):.2f}",
        )
        for name in ("joint", *models)
        if name in activations
    ]


def _runs(tokens: Sequence[str], values: Sequence[float], largest: float, peak: int) -> list[TokenRun]:
    runs: list[TokenRun] = []
    for index, (token, value) in enumerate(zip(tokens, values, strict=True)):
        active = value > 0 and largest > 0
        shade = min(N_SHADES, 1 + int(N_SHADES * value / largest)) if active else 0
        run = TokenRun(tokens=(token,), shade=shade, peak=index == peak, value=f"{value:.2f}")
        if run.unmarked:
            before = runs.pop().tokens if runs and runs[-1].unmarked else ()
            run = TokenRun(tokens=(*before, token))
        runs.append(run)
    return runs
