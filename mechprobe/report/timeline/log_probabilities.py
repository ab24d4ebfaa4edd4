"""Log-probabilities of `mechprobe logprobs`: classes of tokens of fixed traces, as every model predicts them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mechprobe.dynamics.logprobs.result import TABLE_FILE, TRACES_FILE, LogprobsResult
from mechprobe.errors import ArtifactError
from mechprobe.files import read_json
from mechprobe.report.timeline.measured import Measured, item_weights

LOGPROBS = "log-probability"
HEADLINES = ("procedural", "digits", "answer")
"""Classes that stand for the panel; all tokens do where there are none of these."""
ALL, NO_TOKENS = "all", "the values of single tokens are not in the folder"


def of_logprobs(found: LogprobsResult) -> list[Measured]:
    """Mean log-probability of every class of tokens, and of all tokens.

    The traces are the reference responses where there are any, else the responses of base, else those of the first source: all models
    read the same tokens. Quantities are resampled by prompt, together.
    """
    known = {row.source for row in found.find(metric="log_prob")}
    source = next((name for name in ("gold", found.base, *found.sources) if name in known), None)
    if source is None:
        return []
    present = {row.group for row in found.find(metric="log_prob", by="class", source=source)}
    classes = [name for name in found.classes if name in present]
    try:
        drawn = _draws(found, source, classes)
    except (ArtifactError, FileNotFoundError):
        return [_measured(found, source, name, {}, NO_TOKENS) for name in (ALL, *classes)]
    return [_measured(found, source, name, drawn[name], "") for name in (ALL, *classes)]


def _measured(
    found: LogprobsResult, source: str, group: str, draws: dict[str, Float[ndarray, " draw"]], why: str
) -> Measured:
    by = "all" if group == ALL else "class"
    points = {model: found.interval(model, "log_prob", source=source, by=by, group=group) for model in found.models}
    n = points[found.base].n
    text = "reference responses" if source == "gold" else f"text of {source}"
    name = f"log p of {'all' if group == ALL else group} tokens ({text})"
    stands = group in HEADLINES or (group == ALL and not set(HEADLINES) & set(found.classes))
    if n < 2 and not why:
        why = "fewer than two prompts hold such tokens"
    return Measured(name, LOGPROBS, points, {} if why else draws, n, "prompts", "nats", headline=stands, unranked=why)


def _draws(found: LogprobsResult, source: str, classes: Sequence[str]) -> dict[str, dict[str, Float[ndarray, " draw"]]]:
    """Class → model → its mean in each draw of the prompts of the source; NaN in draws without such a token."""
    from safetensors.numpy import load_file

    described, table = read_json(found.folder / TRACES_FILE), load_file(found.folder / TABLE_FILE)
    ids = sorted({entry["prompt_id"] for entry in described if entry["source"] == source})
    number = {name: index for index, name in enumerate(ids)}
    prompts = np.array([number[entry["prompt_id"]] if entry["source"] == source else -1 for entry in described])
    prompt, token_class = prompts[table["trace"]], np.asarray(table["class"])
    weights = item_weights(f"traces {source}", len(ids))
    chosen = {ALL: prompt >= 0} | {name: (prompt >= 0) & (token_class == found.classes.index(name)) for name in classes}
    drawn: dict[str, dict[str, Float[ndarray, " draw"]]] = {name: {} for name in chosen}
    for model in found.models:
        values = load_file(found.folder / f"tokens/{model}.safetensors")["log_prob"].astype(np.float64)
        for name, tokens in chosen.items():
            drawn[name][model] = _means(values[tokens], prompt[tokens], weights)
    return drawn


def _means(
    values: Float[ndarray, " token"], prompt: Int[ndarray, " token"], weights: Float[ndarray, "draw prompt"]
) -> Float[ndarray, " draw"]:
    """The mean over tokens in each draw of their prompts."""
    n = weights.shape[1]
    total, count = (
        weights @ np.bincount(prompt, weights=values, minlength=n),
        weights @ np.bincount(prompt, minlength=n),
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 0, total / count, np.nan)
