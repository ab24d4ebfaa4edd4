"""The data sheet of the benchmark, as Markdown."""

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from mechprobe.evals.skills.family import BEYOND, LEVELS, Family
from mechprobe.evals.skills.generation import problems
from mechprobe.evals.skills.item import direct_response
from mechprobe.evals.skills.registry import CHAT, COMPACT, DOMAINS, FAMILIES, SKILLS, families
from mechprobe.evals.skills.rendering import make_item
from mechprobe.evals.skills.splits import TEST_OUT_FAMILY
from mechprobe.evals.skills.vocabulary import MAX_TOKENS, tokens, vocabulary
from mechprobe.progress import progress

N_SAMPLED = 100
"""Items of a level from which chance, lengths and work are measured."""
N_ANSWERS = 1000
"""Items of a level from which the most frequent answer is counted, or all where a level has fewer."""
_INTRODUCTION = """\
# The atomic-skill benchmark: data sheet

{n_families} families in {n_cells} cells (5 skills x 4 domains), 5 levels each. Every item is drawn from a seed by a program,
which also computes the answer; a second algorithm checks it. No text is copied from a data set or written by a model.

**What is of the paper (arXiv 2512.24063).** The five skills and their definitions; the four domains; some examples (prime
factors, matrix eigenvalues, number-sequence updates, guided and unguided theorem items, minimal-error items, statement drift,
internal inconsistency); the rule that only the final boxed answer is read.

**What is ours.** Everything else, because the paper states no items, sizes or levels: all families, generators, levels,
splits, wordings, verifiers, chance rates and the compact rendering. Scores here do not compare with numbers of the paper.
"""
_SPLITS = """\
## Splits

A question is in one split, whatever the seed: by the hash of its content, 70 % are `train`, 15 % `test_in` and 15 %
`test_out_template` (held-out wording; in the compact rendering, a held-out keyword where the family has one). Level 6, beyond
the range of the levels, is `test_out_param`. Held-out families are `test_out_family`. The two forms of a guided and unguided
pair are in one split.
"""
_COLUMNS = """\
## Columns of the tables

`chance` is the mean probability that a random answerer is right. `constant` is the rate of the most frequent answer among up to
{n} items of the level: the score of an answerer that always gives this answer. It can be above chance.
"""


def card() -> str:
    """The data sheet: cells, splits, vocabulary, and for every family knobs, sizes, chance rates and examples."""
    n_cells = sum(bool(families(skill, domain)) for skill in SKILLS for domain in DOMAINS)
    parts = [_INTRODUCTION.format(n_families=len(FAMILIES), n_cells=n_cells), *_cells(), _SPLITS, *_vocabulary()]
    parts.append(_COLUMNS.format(n=f"{N_ANSWERS:,}"))
    with progress(len(SKILLS) * len(DOMAINS), "drawing examples", unit="cells") as advance:
        for skill in SKILLS:
            parts.append(f"## {skill.replace('_', ' ').capitalize()}\n")
            for domain in DOMAINS:
                parts += [text for family in families(skill, domain) for text in _family(family)]
                advance(1, cell=f"{skill}/{domain}")
    return "\n".join(parts)


def _cells() -> Iterator[str]:
    yield "## Cells\n"
    yield _row(["skill", *DOMAINS])
    yield _row(["---"] * (1 + len(DOMAINS)))
    for skill in SKILLS:
        names = [", ".join(map(_named, families(skill, domain))) for domain in DOMAINS]
        yield _row([skill, *names])
    yield "\n\\* held out: the split `test_out_family`.\n"


def _named(family: Family) -> str:
    return f"{family.name}\\*" if family.held_out else family.name


def _vocabulary() -> Iterator[str]:
    words = vocabulary(FAMILIES.values())
    upper = [word for word in words if word.isupper()]
    symbols = "".join(token for token in words if not token.isalnum())
    yield "## Closed vocabulary of the compact rendering\n"
    yield (
        f"{len(words)} tokens: an upper-case word is one token, and so is every other character. A prompt with its direct "
        f"response has at most {MAX_TOKENS} tokens. Words: {', '.join(upper)}. Characters: the digits, a to z and "
        f"`{symbols}`.\n"
    )


def _family(family: Family) -> Iterator[str]:
    """Section of one family: a table of levels, and one example in both renderings."""
    held_out = f"; held out (`{TEST_OUT_FAMILY}`)" if family.held_out else ""
    yield f"### {family.name}: {family.skill}/{family.domain}\n"
    yield f"{(type(family).__doc__ or '').strip().splitlines()[0]}\n"
    yield (
        f"Version {family.version}; answer: {family.answer_form}, at most {family.max_answer_chars} characters up to level 5; "
        f"{len(family.templates)} wordings, of which the last is held out{held_out}."
        + (f" No trend over levels: {family.no_trend}" if family.no_trend else "")
        + "\n"
    )
    knobs = list(family.knobs(1))
    yield _row(
        ["level", *knobs, "different items", "chance", "constant", "longest compact", "longest trace", "mean work"]
    )
    yield _row(["---"] * (7 + len(knobs)))
    for level in (*LEVELS, BEYOND):
        yield _row(_level(family, level))
    yield ""
    yield from _example(family)


def _level(family: Family, level: int) -> Sequence[str]:
    many = list(islice(problems(family, level, seed=0), N_ANSWERS))
    drawn, constant = many[:N_SAMPLED], Counter(map(family.answer, many)).most_common(1)[0][1] / len(many)
    capacity = family.capacity(level)
    direct = [len(tokens(f"{family.compact(p)} {direct_response(family.answer(p))}")) for p in drawn]
    traces = [len(tokens(family.scratch(problem))) for problem in drawn]
    chance, work = statistics.mean(map(family.chance, drawn)), statistics.mean(map(family.work, drawn))
    size = "more than 1,000" if capacity is None else f"{capacity:,}"
    name = f"{level} (beyond)" if level == BEYOND else str(level)
    return [name, *map(str, family.knobs(level).values()), size, f"{chance:.2g}", f"{constant:.2g}", f"{max(direct)}", f"{max(traces)}", f"{work:.0f}"]  # fmt: skip


def _example(family: Family) -> Iterator[str]:
    problem = next(problems(family, 2, seed=0))
    compact, chat = (make_item(family, problem, 2, rendering) for rendering in (COMPACT, CHAT))
    fence = "````"  # a prompt may hold a block of code
    yield f"{fence}text\n{compact.prompt}\n{compact.trace}\n\n{chat.prompt}\n\n{chat.trace}\n{fence}\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
