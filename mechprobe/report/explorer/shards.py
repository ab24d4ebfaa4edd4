"""Shards: what the page of a feature shows, `GROUP_FEATURES` features in a file, read when one of them is opened."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from mechprobe.errors import ArtifactError
from mechprobe.features.contexts.files import (
    CONTEXTS_FILE,
    GROUP_FEATURES,
    PROMOTED_FILE,
    ContextGroup,
    PromotedGroup,
    read_contexts,
    read_promoted,
)
from mechprobe.report.explorer.courses import Course
from mechprobe.report.explorer.script_data import packed

_FEW = 3
"""Promoted tokens per model that the search finds."""


class TokenIndex:
    """The tokens by which features are found: those at which they are active, and those that they promote."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._of_feature: dict[str, list[list[int]]] = {"peaks": [], "promoted": []}

    def add(self, features: Sequence[int], contexts: ContextGroup | None, promoted: PromotedGroup | None) -> None:
        """Add the next features."""
        peaks: dict[int, list[int]] = {feature: [] for feature in features}
        if contexts is not None:
            numbers = [self._number(text) for text in contexts.strings]
            tokens = contexts.token[contexts.offset[:-1] + contexts.peak]
            for feature, token in zip(contexts.feature.tolist(), tokens.tolist(), strict=True):
                peaks[feature].append(numbers[token])
        self._of_feature["peaks"] += [list(dict.fromkeys(tokens)) for tokens in peaks.values()]
        first = [] if promoted is None else [ends["promoted"][0][:, :_FEW] for ends in promoted.models.values()]
        if promoted is None or not first:
            self._of_feature["promoted"] += [[] for _ in features]
            return
        numbers = [self._number(text) for text in promoted.strings]
        rows = np.concatenate(first, axis=1).tolist()
        self._of_feature["promoted"] += [list(dict.fromkeys(numbers[token] for token in row)) for row in rows]

    def _number(self, text: str) -> int:
        return self._numbers.setdefault(text, len(self._numbers))

    def to_dict(self) -> dict[str, Any]:
        """Texts, and by kind the numbers of the texts of all features with the place of each feature's first."""
        found: dict[str, Any] = {"texts": list(self._numbers)}
        for kind, lists in self._of_feature.items():
            start = np.cumsum([0, *map(len, lists)])
            found[kind] = {
                "start": packed(start, "<u4"),
                "token": packed([token for tokens in lists for token in tokens], "<u4"),
            }
        return found


def shards(
    features: Int[ndarray, " live"],
    details: Mapping[str, Float[ndarray, " live"]],
    contexts: Path | None,
    courses: Sequence[Course],
    index: TokenIndex,
) -> Iterator[dict[str, Any]]:
    """Yield every shard, and add its tokens to the index.

    Args:
        features: Live features, by rising id.
        details: Numbers of a feature's page.
        contexts: Folder of the stage ``contexts``; None if there is none for these features.
        courses: Courses over checkpoints.
        index: Gets the tokens.

    Raises:
        ArtifactError: A file of the folder cannot be read, or holds other features.
    """
    numbers = np.stack(list(details.values()), axis=1)
    parts = [features[first : first + GROUP_FEATURES] for first in range(0, len(features), GROUP_FEATURES)]
    read: Iterator[ContextGroup] | tuple[()] = read_contexts(contexts / CONTEXTS_FILE) if contexts else ()
    has_promoted = contexts is not None and (contexts / PROMOTED_FILE).is_file()
    promoted: Iterator[PromotedGroup] | tuple[()] = read_promoted(contexts / PROMOTED_FILE) if has_promoted else ()  # pyright: ignore[reportOptionalOperand]
    for number, (part, group, tokens) in enumerate(zip_longest(parts, read, promoted)):
        for found in (group, tokens):
            if part is None or (found is not None and not np.isin(found.feature, part).all()):
                raise ArtifactError(f"{contexts} holds other features than the table; run `mechprobe features` again.")
        index.add(part.tolist(), group, tokens)
        first = number * GROUP_FEATURES
        shard: dict[str, Any] = {"details": packed(numbers[first : first + len(part)], "<f4")}
        if group is not None:
            shard["contexts"] = _packed_contexts(group, part)
        if tokens is not None:
            shard["promoted"] = _packed_promoted(tokens)
        if courses:
            shard["courses"] = _of_features(courses, part)
        yield shard


def _of_features(courses: Sequence[Course], features: Int[ndarray, " feature"]) -> dict[str, list[dict[str, Any]]]:
    """The courses of the features that have one."""
    found = {str(feature): [course.of(feature) for course in courses] for feature in features.tolist()}
    matched = {feature: [one for one in several if one is not None] for feature, several in found.items()}
    return {feature: several for feature, several in matched.items() if several}


def _packed_contexts(group: ContextGroup, features: Int[ndarray, " feature"]) -> dict[str, Any]:
    ranges = np.stack([group.low, group.high, group.smallest, group.largest], axis=1)
    return {
        "start": packed(np.append(np.searchsorted(group.feature, features), len(group)), "<u4"),
        "part": packed(group.part, "<i2"),
        "range": packed(ranges, "<f4"),
        "sample": packed(group.sample, "<u4"),
        "row": packed(group.row, "<u4"),
        "peak": packed(group.peak, "<u4"),
        "offset": packed(group.offset, "<u4"),
        "strings": list(group.strings),
        "token": packed(group.token, "<u4" if len(group.strings) > 0xFFFF else "<u2"),
        "response": packed(np.packbits(group.is_response, bitorder="little"), "u1"),
        "acts": _packed_acts(group.acts),
    }


def _packed_acts(acts: Mapping[str, Float[ndarray, " token"]]) -> dict[str, Any]:
    """Positions and values above zero by read-out; a read-out that equals an earlier one is that one's name."""
    found: dict[str, Any] = {}
    for name, values in acts.items():
        same = next((other for other in found if np.array_equal(acts[other], values)), None)
        at = np.flatnonzero(values)
        found[name] = same or {"at": packed(at, "<u4"), "value": packed(values[at], "<f4")}
    return found


def _packed_promoted(group: PromotedGroup) -> dict[str, Any]:
    models = {
        name: {
            end: {"token": packed(token, "<u4"), "value": packed(value, "<f4")} for end, (token, value) in ends.items()
        }
        for name, ends in group.models.items()
    }
    return {"size": len(group.feature), "strings": list(group.strings), "models": models}
