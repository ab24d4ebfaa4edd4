"""`generate`, which draws items of a cell from a seed, and `split`, which deals them out."""

import random
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice, repeat
from typing import Any, TypeVar

from mechprobe.errors import InputError
from mechprobe.evals.skills.family import BEYOND, LEVELS, Family
from mechprobe.evals.skills.item import SkillItem
from mechprobe.evals.skills.registry import (
    COMPACT,
    DOMAINS,
    LAB,
    RENDERINGS,
    SKILLS,
    check_choice,
    families,
    family_named,
)
from mechprobe.evals.skills.rendering import check_rendering, make_item
from mechprobe.evals.skills.splits import SPLITS, TEST_OUT_FAMILY, TEST_OUT_PARAM, split_of

T = TypeVar("T")
_PATIENCE = 1000
"""Draws without a new problem after which a family counts as exhausted; more where many problems are known or excluded."""


def generate(  # noqa: PLR0913 - the promised entry point; all but the skill are keyword options
    skill: str,
    *,
    n: int,
    seed: int,
    domain: str = LAB,
    level: int | None = None,
    rendering: str = COMPACT,
    family: str | None = None,
    split: str | None = None,
    exclude: Collection[str] = (),
) -> list[SkillItem]:
    """Draw n different items of one cell.

    The questions depend on everything but the rendering. Fewer items with the same seed are the first of more. Where a cell
    has several families, they take turns; an exhausted family leaves the rest to the others.

    Args:
        skill: Name of the skill.
        n: Number of items.
        seed: Seed of the draw.
        domain: Name of the domain; `symbolic` takes the lab's family, whichever its domain is.
        level: 1 to 5, or 6, which is beyond their range. By default 1, and 6 for the split `test_out_param`.
        rendering: Name of the rendering.
        family: Name of a family of the cell; all that are not held out when None, or those that are for `test_out_family`.
        split: Split to which all items belong; None takes all questions.
        exclude: Ids or compact prompts that are not drawn.

    Raises:
        InputError: A choice is unknown or contradicts another, or there are fewer than n such items.
    """
    if n < 0:
        raise InputError(f"{n} items cannot be drawn; ask for 0 or more.")
    chosen = _families(skill, domain, family, split)
    level = _level(level, split)
    check_choice("rendering", rendering, RENDERINGS)
    for each in chosen:
        check_rendering(each, level, rendering)
    sizes, excluded = [each.capacity(level) for each in chosen], frozenset(exclude)
    known = sum(size for size in sizes if size is not None)
    if None not in sizes and n > known:  # without drawing them all
        raise InputError(_too_few(skill, domain, level, None, known, n, chosen))
    streams = [zip(repeat(each), problems(each, level, seed=seed, split=split, exclude=excluded)) for each in chosen]
    drawn = list(islice(_in_turns(streams), n))
    if len(drawn) < n:
        raise InputError(_too_few(skill, domain, level, split, len(drawn), n, chosen, excluded=bool(excluded)))
    return [make_item(each, problem, level, rendering) for each, problem in drawn]


def split(skill: str, sizes: Mapping[str, int], *, seed: int, rendering: str = COMPACT) -> dict[str, list[SkillItem]]:
    """Draw named sets of the lab's items that share no prompt, e.g. `{"eval": 256, "posttrain": 2048}`.

    A set keeps its items when later sets are added or grow.
    """
    items = iter(generate(skill, n=sum(sizes.values()), seed=seed, rendering=rendering))
    return {name: list(islice(items, size)) for name, size in sizes.items()}


def problems(
    family: Family, level: int, *, seed: int, split: str | None = None, exclude: Collection[str] = ()
) -> Iterator[Any]:
    """Yield the different problems of a level and a split, without those in ``exclude``, until no new one comes.

    A draw that is rejected is repeated with the same kind, so rejections do not shift the shares of kinds.
    """
    rng = random.Random(f"{family.stream(level)}/{seed}")
    capacity, seen, fruitless, kind = family.capacity(level), set[str](), 0, ()
    while len(seen) != capacity and fruitless < _PATIENCE + 40 * len(seen):
        if family.kinds and fruitless == 0:
            kind = (rng.choice(family.kinds),)
        fruitless += 1
        problem = family.draw(rng, level, *kind)
        if family.level_of(problem) != level or (identity := family.id(problem)) in seen:
            continue
        seen.add(identity)
        if exclude and (identity in exclude or family.compact(problem) in exclude):
            continue
        if split is None or split_of(family, problem, level) == split:
            fruitless = 0
            yield problem


def _in_turns(streams: Iterable[Iterator[T]]) -> Iterator[T]:
    """Take one element of each stream in turn, until all are exhausted."""
    left = list(streams)
    while left:
        for stream in list(left):
            try:
                yield next(stream)
            except StopIteration:
                left.remove(stream)


def _families(skill: str, domain: str, name: str | None, split: str | None) -> list[Family]:
    """The families to draw from, after the choices are checked."""
    check_choice("skill", skill, SKILLS)
    check_choice("domain", domain, (*DOMAINS, LAB))
    if split is not None:
        check_choice("split", split, SPLITS)
    if name is not None:
        chosen = family_named(name)
        if chosen.skill != skill or domain not in (chosen.domain, LAB):
            raise InputError(
                f"Family '{name}' belongs to {chosen.skill}/{chosen.domain}, not to {skill}/{domain}; change one of them."
            )
        found = [chosen]
    elif domain == LAB:
        found = [SKILLS[skill].family]
    else:
        found = families(skill, domain, held_out=split == TEST_OUT_FAMILY)
    if not found:
        held_out = ", ".join(f"{each.skill}/{each.domain}" for each in families(held_out=True)) or "none"
        raise InputError(
            f"{skill}/{domain} has no items in the split {split or 'of all'}; cells with a held-out family: {held_out}."
        )
    for each in found:
        if split is not None and each.held_out != (split == TEST_OUT_FAMILY):
            where = (
                f"is held out: all its items are in the split {TEST_OUT_FAMILY}" if each.held_out else "is not held out"
            )
            raise InputError(
                f"Family '{each.name}' {where}, so it has none in {split}; choose another split or family."
            )
    return found


def _level(level: int | None, split: str | None) -> int:
    """The level to draw; `InputError` if it is unknown or contradicts the split."""
    beyond = split == TEST_OUT_PARAM
    if level is None:
        return BEYOND if beyond else LEVELS[0]
    check_choice("level", level, (*LEVELS, BEYOND))
    if beyond != (level == BEYOND) and split not in (None, TEST_OUT_FAMILY):
        raise InputError(f"Split {split} has no items of level {level}; level {BEYOND} alone is in {TEST_OUT_PARAM}.")
    return level


def _too_few(
    skill: str,
    domain: str,
    level: int,
    split: str | None,
    found: int,
    n: int,
    chosen: list[Family],
    *,
    excluded: bool = False,
) -> str:
    where = (
        f"of level {level}"
        + (f" in the split {split}" if split else "")
        + (", without those excluded," if excluded else "")
    )
    names = ", ".join(each.name for each in chosen)
    return f"{skill}/{domain} has {found} items {where} ({names}), so {n} cannot be drawn; ask for fewer."
