"""Splits by content: a question is in the same split for every seed and rendering, so no two splits share one."""

import hashlib
from typing import Any

from mechprobe.evals.skills.family import BEYOND, Family

TRAIN, TEST_IN, TEST_OUT_PARAM = "train", "test_in", "test_out_param"
TEST_OUT_TEMPLATE, TEST_OUT_FAMILY = "test_out_template", "test_out_family"
SPLITS = (TRAIN, TEST_IN, TEST_OUT_PARAM, TEST_OUT_TEMPLATE, TEST_OUT_FAMILY)
"""`train` and `test_in` share levels, wording and families. The others hold out one of these: the range of the parameters
(level 6), the wording (and the compact keyword, where a family has another), or the whole family."""
TRAIN_PERCENT = 70
_SHARES = ((TRAIN_PERCENT, TRAIN), (85, TEST_IN), (100, TEST_OUT_TEMPLATE))
"""Upper bounds of the hash bucket, 0 to 99."""


def split_of(family: Family, problem: Any, level: int) -> str:
    """The split of a problem of a level. The two forms of a pair are hashed as one."""
    if family.held_out:
        return TEST_OUT_FAMILY
    if level == BEYOND:
        return TEST_OUT_PARAM
    bucket = bucket_of(family.extras(problem).get("pair") or family.id(problem))
    return next(name for bound, name in _SHARES if bucket < bound)


def bucket_of(key: str) -> int:
    """A number from 0 to 99 by the hash of an id."""
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % 100


def template_of(family: Family, identity: str, split: str) -> int:
    """The wording of an item: the last one in `test_out_template`, else one of the others by its id."""
    n_usual = len(family.templates) - 1
    if split == TEST_OUT_TEMPLATE or n_usual < 1:
        return len(family.templates) - 1
    return int(identity.rpartition("-")[2], 16) % n_usual
