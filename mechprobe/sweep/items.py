"""The items of a benchmark as a task: from the user's file, or drawn from the skills benchmark."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from mechprobe.data.config import TextConfig
from mechprobe.errors import ConfigError, InputError
from mechprobe.evals import skills
from mechprobe.evals.config import SamplingConfig
from mechprobe.evals.scorers.parse import AnyScorer, scorer
from mechprobe.evals.scorers.rules import LaterScorer
from mechprobe.evals.skills.registry import COMPACT, LAB
from mechprobe.evals.tasks import Task, load_tasks
from mechprobe.records import Sample
from mechprobe.sweep.config import BenchmarkConfig, SkillItemsConfig, SweepConfig
from mechprobe.sweep.policy import forbidden
from mechprobe.sweep.registry import ALLOWED, FORBIDDEN, SLOTS, STANDIN, STANDINS, TEMPERATURE, TOP_P, real_name
from mechprobe.sweep.standin_scorers import ANSWERS_FORBIDDEN, BOXED_FORM, COMPACT_FORM, REFUSES_ALLOWED, StandinScorer
from mechprobe.types import ThinkTags

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_COMPACT_TOKENS, _CHAT_TOKENS = 48, 512
"""Longest response to procedural items in their two renderings."""
_FORM = "standin:ifeval"


class Asked(NamedTuple):
    """What the models of a sweep share: how prompts become ids, and the tags around thinking."""

    tokenizers: "Mapping[str, PreTrainedTokenizerBase]"
    text: TextConfig
    think: ThinkTags | None


def task_of(name: str, config: BenchmarkConfig, sweep: SweepConfig, asked: Asked) -> Task:
    """The task of a benchmark with items; its name is that of the benchmark.

    Raises:
        ConfigError: The benchmark has no scorer, or its scorer does not suit the items.
        InputError: The items are unusable.
    """
    settings = _standin_items(name, config.skill) if name.startswith(STANDIN) else config.skill
    if settings is not None:
        return _drawn(name, config, settings, sweep, asked)
    limit = config.max_new_tokens or (SLOTS[name].max_new_tokens if name in SLOTS else 64)
    tasks = load_tasks(
        config.file,
        scorer_spec=_scorer(name, config),
        choice=config.choice,
        max_new_tokens=limit,
        sampling=_sampling(name, config, sweep),
        stop=config.stop,
        think=asked.think,
        text=asked.text,
        names=[config.task] if config.task else None,
        n_per_task=config.n_items,
    )
    if len(tasks) > 1:
        raise ConfigError(
            f"{config.file} has the tasks {', '.join(task.name for task in tasks)}; name that of benchmark {name} in its 'task'."
        )
    if tasks[0].by_likelihood and (config.judge or config.reward):
        raise ConfigError(
            f"Benchmark {name} has options, whose log-likelihoods decide; remove judge and reward, or the options."
        )
    real = real_name(name, config.title)
    if real is not None and len(skills.labels(tasks[0].samples)) == len(tasks[0].samples):
        raise ConfigError(
            f"{config.file} holds items of the skills benchmark, and benchmark {name} would be taken for {real}; give it a name "
            "and a title of its own."
        )
    return replace(tasks[0], name=name)


def _scorer(name: str, config: BenchmarkConfig) -> AnyScorer:
    """The rule of a benchmark from a file; `ConfigError` where its slot needs something else."""
    if config.judge or config.reward:
        return LaterScorer()
    slot = SLOTS.get(name)
    if config.scorer or slot is None or slot.scorer:
        return config.scorer or (slot.scorer if slot else "exact")
    mend = {
        "judge": "set judge",
        "reward_model": "set reward.model",
        "rule": "give its task of lm-evaluation-harness as harness, finished results, or scorer = 'python:<MODULE>:<FUNCTION>'",
    }
    raise ConfigError(
        f"{slot.title} is scored by {slot.scoring}, which mechprobe does not do by itself; {mend[slot.kind]}."
    )


def _sampling(name: str, config: BenchmarkConfig, sweep: SweepConfig) -> SamplingConfig:
    """Decoding of a benchmark: as set, or as in the paper, or greedy; with the seed of the sweep unless one is set."""
    slot = STANDINS.get(name) or SLOTS.get(name)
    given = config.sampling
    if given is None:
        paper = {"n": slot.n, "temperature": TEMPERATURE, "top_p": TOP_P} if slot else {}
        return SamplingConfig(seed=sweep.seed, **paper)
    return given if "seed" in given.model_fields_set else given.replace(seed=sweep.seed)


def _standin_items(name: str, given: SkillItemsConfig | None) -> SkillItemsConfig:
    """The items of a stand-in; size, seed, level and rendering may be set, but not the skill."""
    cell, given = STANDINS[name].standin, given or SkillItemsConfig()
    assert cell is not None, "STANDINS holds the slots that have one"
    fixed = given.model_fields_set & {"skill", "domain"}
    if fixed:
        raise ConfigError(f"'{name}' is drawn from {cell.skill}/{cell.domain}; remove skill.{min(fixed)}.")
    level = given.level if "level" in given.model_fields_set else cell.level
    return given.replace(skill=cell.skill, domain=cell.domain, level=level)


def _drawn(name: str, config: BenchmarkConfig, settings: SkillItemsConfig, sweep: SweepConfig, asked: Asked) -> Task:
    """A task of drawn items."""
    rendering = rendering_of(settings, asked)
    of_lab = name.startswith(STANDIN) and rendering == COMPACT
    try:
        items = skills.generate(
            settings.skill,
            domain=LAB if of_lab else settings.domain,
            level=settings.level,
            split=settings.split or None,
            n=settings.n,
            seed=settings.seed,
            rendering=rendering,
        )
    except InputError as error:
        raise InputError(f"Benchmark {name}: {error}") from None
    compact = rendering == COMPACT
    if name == FORBIDDEN:
        items = [forbidden(item) for item in items]
    _check_known(name, items, asked)
    judge = _drawn_scorer(name, config, compact=compact)
    return Task(
        name=name,
        samples=tuple(Sample(item.id, item.task, item.prompt, item.answer) for item in items),
        scorer=judge if isinstance(judge, LaterScorer) else scorer(judge),
        max_new_tokens=config.max_new_tokens or (_COMPACT_TOKENS if compact else _CHAT_TOKENS),
        text=asked.text,
        stop=config.stop,
        think=asked.think,
        sampling=_sampling(name, config, sweep),
    ).take(config.n_items)


def _drawn_scorer(name: str, config: BenchmarkConfig, *, compact: bool) -> AnyScorer:
    if config.judge or config.reward:
        return LaterScorer()
    if name in STANDINS and STANDINS[name].kind == "reward_model":
        raise ConfigError(f"'{name}' needs a reward model; set reward.model in its benchmark.")
    if config.scorer:
        return config.scorer
    rules = {FORBIDDEN: ANSWERS_FORBIDDEN, ALLOWED: REFUSES_ALLOWED, _FORM: COMPACT_FORM if compact else BOXED_FORM}
    return StandinScorer(rules[name]) if name in rules else "skill"


def _check_known(name: str, items: Sequence[skills.SkillItem], asked: Asked) -> None:
    """Refuse items with characters or words that the tokenizer does not have."""
    tokenizer = next(iter(asked.tokenizers.values()))
    unknown = tokenizer.unk_token_id
    for item in items:
        if unknown is not None and unknown in tokenizer(item.prompt, add_special_tokens=False).input_ids:
            raise ConfigError(
                f"The tokenizer of the models lacks a token of item {item.id} of benchmark {name} ({item.prompt[:60]!r}); set another "
                'skill.rendering, or skill.domain = "symbolic" for the families of the lab.'
            )


def rendering_of(settings: SkillItemsConfig, asked: Asked) -> str:
    """The rendering of drawn items. A tokenizer that gives a sentence back has the characters of natural language."""
    if settings.rendering != "auto":
        return settings.rendering
    tokenizer, sentence = next(iter(asked.tokenizers.values())), "Give the answer as an integer in \\boxed{}."
    ids = tokenizer(sentence, add_special_tokens=False).input_ids
    known = "".join(str(tokenizer.decode(ids)).split()) == "".join(sentence.split())
    return "chat" if known else "compact"
