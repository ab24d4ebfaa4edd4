"""The numbers of the divergence table, from sums over positions."""

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from mechprobe.drift.divergence.columns import COLUMNS, RANK_BINS

METRICS = {
    "kl": "KL(tuned || base) over the whole vocabulary, mean over predicted tokens, nats.",
    "kl_reverse": "KL(base || tuned), nats.",
    "js": "Jensen-Shannon divergence, nats, at most log 2.",
    "tv": "Total variation distance, 0 to 1.",
    "top1_agreement": "Share of positions where both have the same most probable token.",
    "entropy_change": "Entropy of the tuned model minus that of base, nats.",
    "entropy_base": "Entropy of base, nats.",
    "log_ratio": "Mean of log p_tuned - log p_base of the realised token, nats; positive where tuning made the text more likely.",
    "kl_mc": "The same on own continuations: the Monte-Carlo estimate of KL(tuned || base), signed, first response token included.",
    "kl_k3": "Mean of r - 1 - log r with r = p_base / p_tuned of the realised token, on own continuations: an estimate that is never negative.",
    "rank_base_over_1": "Share of realised tokens that are not base's most probable.",
    "rank_base_over_10": "Share of realised tokens that base ranks below 10.",
    "rank_base_median": "Median rank of the realised token under base; above 10, the lower end of its bin (11, 101, 1001).",
    "rank_over_1": "Share of realised tokens that are not the tuned model's most probable.",
    "rank_over_10": "Share of realised tokens that the tuned model ranks below 10.",
    "rank_median": "Median rank of the realised token under the tuned model, as for base.",
}
"""Metric to its definition."""

OWN_ONLY, ELSEWHERE_ONLY = ("kl_mc", "kl_k3"), ("log_ratio",)
_MEANS = {
    "kl": "kl", "kl_reverse": "kl_reverse", "js": "js", "tv": "tv", "top1_agreement": "top1_agreement",
    "entropy_base": "entropy_base", "log_ratio": "log_ratio", "kl_mc": "log_ratio", "kl_k3": "k3",
}  # fmt: skip


def metrics_of(sums: Float[ndarray, "*part column"]) -> dict[str, Float[ndarray, "*part"]]:
    """Every metric from sums of `COLUMNS`; NaN where there is no position."""
    column = {name: sums[..., index] for index, name in enumerate(COLUMNS)}
    n = column["n"]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {metric: column[name] / n for metric, name in _MEANS.items()}
        found["entropy_change"] = (column["entropy"] - column["entropy_base"]) / n
        for side in ("rank_base", "rank"):
            bins = np.stack([column[f"{side}_{low}"] for low in RANK_BINS], axis=-1)
            found[f"{side}_over_1"] = bins[..., 1:].sum(axis=-1) / n
            found[f"{side}_over_10"] = bins[..., RANK_BINS.index(11) :].sum(axis=-1) / n
            found[f"{side}_median"] = _median(bins, n)
    return {metric: found[metric] for metric in METRICS}


def metrics_in(source: str) -> list[str]:
    """The metrics that a source has."""
    return [metric for metric in METRICS if metric not in (ELSEWHERE_ONLY if source == "own" else OWN_ONLY)]


def _median(bins: ndarray, n: ndarray) -> ndarray:
    """The lower median: the smallest rank that at least half of the positions do not exceed."""
    place = (bins.cumsum(axis=-1) >= n[..., None] / 2).argmax(axis=-1)
    return np.where(n > 0, np.asarray(RANK_BINS, dtype=np.float64)[place], np.nan)
