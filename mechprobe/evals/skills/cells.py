"""Items of several cells at once, and the files that `mechprobe skills make` writes."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mechprobe.errors import ArtifactError, InputError
from mechprobe.evals.skills import reasoning_gym
from mechprobe.evals.skills.family import BEYOND, LEVELS
from mechprobe.evals.skills.generation import generate
from mechprobe.evals.skills.item import SkillItem
from mechprobe.evals.skills.registry import CHAT, COMPACT, DOMAINS, SKILLS, check_choice, families, family_named
from mechprobe.evals.skills.splits import SPLITS, TEST_OUT_FAMILY, TEST_OUT_PARAM
from mechprobe.files import dump_json, sha256_bytes, write_text
from mechprobe.progress import activity, progress

TASKS, PROMPTS, RECORD = "tasks.jsonl", "prompts.jsonl", "skills.json"
_LABELS = ("skill", "domain", "family", "level", "split")


class Wanted(NamedTuple):
    """Which items to draw.

    Attributes:
        skills: Names of skills; empty takes all.
        domains: Names of domains; empty takes all.
        levels: Levels; empty takes all of the split: 6 for `test_out_param`, 1 to 6 for all splits, else 1 to 5.
        family: Name of the only family; None takes those of the cells.
        split: Split of the items; None takes all five, so level 6 and held-out families, too.
        rendering: Name of the rendering.
        n: Items of every cell and level.
        seed: Seed of the draw.
        reasoning_gym: Tasks of reasoning-gym to add, n items of each at every level.
    """

    skills: tuple[str, ...] = ()
    domains: tuple[str, ...] = ()
    levels: tuple[int, ...] = ()
    family: str | None = None
    split: str | None = "test_in"
    rendering: str = COMPACT
    n: int = 20
    seed: int = 0
    reasoning_gym: tuple[str, ...] = ()

    @property
    def cells(self) -> list[tuple[str, str]]:
        """Skill and domain of every cell that is asked for and has items in the split.

        Raises:
            InputError: A name is unknown, or no cell is left.
        """
        for kind, given, known in (("skill", self.skills, SKILLS), ("domain", self.domains, DOMAINS)):
            for name in given:
                check_choice(kind, name, known)
        if self.split is not None:
            check_choice("split", self.split, SPLITS)
        asked = [(s, d) for s in self.skills or SKILLS for d in self.domains or DOMAINS]
        if self.family is not None:
            own = family_named(self.family)
            asked = [cell for cell in asked if cell == (own.skill, own.domain)]
            if not asked:
                raise InputError(
                    f"Family '{own.name}' belongs to {own.skill}/{own.domain}, which is not among the cells asked for; "
                    "leave out --skills and --domains."
                )
            return asked
        held_out = None if self.split is None else self.split == TEST_OUT_FAMILY
        found = [cell for cell in asked if families(*cell, held_out=held_out)]
        if not found:
            known = ", ".join(f"{each.skill}/{each.domain}" for each in families(held_out=True))
            raise InputError(
                f"None of these cells has items in the split {self.split}; cells with a family in {TEST_OUT_FAMILY}: "
                f"{known or 'none'}."
            )
        return found

    @property
    def all_levels(self) -> tuple[int, ...]:
        """The levels to draw."""
        if self.split is None:
            return self.levels or (*LEVELS, BEYOND)
        return self.levels or ((BEYOND,) if self.split == TEST_OUT_PARAM else LEVELS)

    def items(self) -> list[SkillItem]:
        """Draw the items, cell by cell and level by level; of all splits, held-out families add n items of their own.

        Raises:
            InputError: A choice is unknown, or there are too few items.
        """
        check_choice("rendering", self.rendering, (COMPACT, CHAT))
        with activity("tasks of reasoning-gym"):
            foreign, drawn = list(self._of_reasoning_gym()), list[SkillItem]()
        cells = self.cells
        with progress(len(cells), "drawing items", unit="cells") as advance:
            for skill, domain in cells:
                for level in dict.fromkeys(self.all_levels):
                    for split in self._splits_of(skill, domain):
                        drawn += generate(
                            skill, n=self.n, seed=self.seed, domain=domain, level=level, rendering=self.rendering,
                            family=self.family, split=split,
                        )  # fmt: skip
                advance(1, cell=f"{skill}/{domain}")
        return [*drawn, *foreign]

    def _splits_of(self, skill: str, domain: str) -> list[str | None]:
        """What `generate` is asked for: the split; of all splits, None for the usual families and also the held-out ones."""
        if self.split is not None or self.family is not None:
            return [self.split]
        asked: tuple[tuple[str | None, bool], ...] = ((None, False), (TEST_OUT_FAMILY, True))
        return [split for split, held_out in asked if families(skill, domain, held_out=held_out)]

    def _of_reasoning_gym(self) -> Iterator[SkillItem]:
        if self.reasoning_gym and self.rendering != CHAT:
            raise InputError(f"Tasks of reasoning-gym have the rendering {CHAT} only, not {self.rendering}.")
        for task in self.reasoning_gym:
            for level in dict.fromkeys(self.levels or LEVELS if self.split is None else self.all_levels):
                yield from reasoning_gym.items(task, n=self.n, seed=self.seed, level=level, split=self.split)


def write_items(folder: Path, wanted: Wanted, items: Sequence[SkillItem], *, force: bool = False) -> None:
    """Write tasks, prompts with gold responses, and a record of how both were drawn.

    The same items may be written again. ``tasks.jsonl`` has whole items; the lines of ``prompts.jsonl`` have the worked
    trace as their response.

    Raises:
        ArtifactError: The folder has other items and ``force`` is false, or it cannot be written.
    """
    texts = {TASKS: json_lines([item.to_json() for item in items]), PROMPTS: json_lines(list(map(_prompt_line, items)))}
    texts[RECORD] = dump_json(
        {
            "settings": wanted._asdict(),
            "families": {item.family: item.version for item in sorted(items, key=lambda item: item.family)},
            "n": len(items),
            "sha256": {name: sha256_bytes(text.encode()) for name, text in texts.items()},
        }
    )
    for name, text in texts.items():
        path = folder / name
        if not force and path.is_file() and path.read_bytes() != text.encode():
            raise ArtifactError(f"{path} holds other items; give another --out, or --force to replace them.")
    for name, text in texts.items():
        write_text(folder / name, text)


def json_lines(records: Sequence[dict[str, Any]]) -> str:
    """Records as JSON lines."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def _prompt_line(item: SkillItem) -> dict[str, Any]:
    line = {"id": item.id, "task": item.task, "prompt": item.prompt, "response": item.trace}
    return line | {name: getattr(item, name) for name in _LABELS}
