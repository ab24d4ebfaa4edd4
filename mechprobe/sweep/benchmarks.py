"""Benchmarks that models of the sweep answer: asked here, on a server, in files of rollouts, or by lm-evaluation-harness."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.environment import require
from mechprobe.errors import InputError
from mechprobe.evals.answering import encoders_of, prompt_of, run_tasks
from mechprobe.evals.judging.config import JudgeConfig
from mechprobe.evals.judging.judge import Judge, Judged
from mechprobe.evals.judging.server_judge import check_key, settings_named
from mechprobe.evals.rollouts.answers import Answers, Question, require_responses, sampling_of
from mechprobe.evals.scorers.refusals import refuses
from mechprobe.evals.scorers.rules import LaterScorer, Scorer
from mechprobe.evals.scoring import scored_text
from mechprobe.evals.stage import JOURNAL_FILE, check_lengths, tasks_fingerprint, text_identity
from mechprobe.evals.tasks import Task
from mechprobe.files import dump_json, sha256_bytes
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import Generated
from mechprobe.ranks import once
from mechprobe.records import Outcome, read_outcomes, write_jsonl
from mechprobe.sweep.config import BenchmarkConfig, SweepConfig
from mechprobe.sweep.numbers import judged_cell, reward_cell, rule_cell
from mechprobe.sweep.registry import ALLOWED, FORBIDDEN, SLOTS, STANDIN, STANDINS, Slot
from mechprobe.sweep.result import ENGINE_FILE, RESPONSES_FILE, BenchmarkInfo, CellResult

if TYPE_CHECKING:
    from mechprobe.evals.judging.reward import RewardModel


class Benchmark(ABC):
    """A benchmark whose cells can be made.

    Attributes:
        info: What it is.
        models: The models that it has or can have cells of.
        cheap: Whether a cell is only read from files, so that changed files make it again without ``--force``.
        deferred: Whether scoring waits until all responses are there, so that models and scorer are not in memory together.
        whole: Whether one process makes a whole cell, because the work of the cell cannot be divided.
    """

    info: BenchmarkInfo
    models: Sequence[str]
    cheap = False
    deferred = False
    whole = False

    @abstractmethod
    def identity(self, model: str) -> dict[str, Any]:
        """The JSON value on which the cell of a model depends besides its weights."""

    def fingerprint(self, model: str) -> dict[str, str]:
        """Name → fingerprint of the weights that the cell needs."""
        del model
        return {}

    def ask(self, model: str, folder: Path) -> None:
        """Make what needs the model, and keep it in the folder of the cell; nothing where the numbers come with the answers."""
        del model, folder

    def judge_again(self, model: str, folder: Path) -> None:
        """Judge the kept responses in the folder of a cell by a rule that has changed."""
        del model, folder

    @abstractmethod
    def cell(self, model: str, folder: Path) -> CellResult:
        """The result of a model that was asked."""

    def release(self) -> None:
        """Free what scoring has loaded."""
        return


def slot_of(name: str) -> Slot | None:
    """The paper's benchmark of a name or of its stand-in."""
    return STANDINS.get(name) or SLOTS.get(name)


def common_info(name: str, config: BenchmarkConfig) -> dict[str, Any]:
    """The fields of `BenchmarkInfo` that follow from name and settings."""
    slot, standin = slot_of(name), name.startswith(STANDIN)
    higher = config.higher_is_better
    title = " ".join(config.title.split()) or (slot.title if slot else name)
    return {
        "name": name,
        "title": name if standin else title,
        "group": config.group or (slot.group if slot else "own"),
        "higher_is_better": higher if higher is not None else (slot.higher_is_better if slot else True),
        "standin": standin,
    }


@dataclass
class ItemBenchmark(Benchmark):
    """Items that models answer with responses, or by the log-likelihoods of options."""

    info: BenchmarkInfo
    config: BenchmarkConfig
    sweep: SweepConfig
    family: ModelFamily
    task: Task
    judge: Judge | None = None
    reward: "RewardModel | None" = None
    answers: Answers | None = None

    def __post_init__(self) -> None:
        self.models = self.family.names
        self.cheap = self.answers is not None and self.judge is None
        self.deferred = self.judge is not None or self.reward is not None

    def identity(self, model: str) -> dict[str, Any]:
        """What was asked, with the responses where they were imported, and how it is scored."""
        scorer, task = self.judge or self.reward, self.task
        if isinstance(task.scorer, Scorer):  # orders of options are asked as their judge says
            blank = tuple(replace(sample, answer="") for sample in task.samples)
            task = replace(task, samples=blank, scorer=LaterScorer())
        asked: dict[str, Any] = {"tasks": tasks_fingerprint([task]), "source": self.info.source}
        asked |= text_identity(self.family, [task]) | self.family.subset(model).identity
        if self.answers is not None:
            mine = [[list(q), asdict(one)] for q, one in sorted(self.answers.found.items()) if q.model == model]
            asked["responses"] = sha256_bytes(dump_json(mine).encode())
        scored: dict[str, Any] = {"info": self.info.to_dict(), "tasks": tasks_fingerprint([self.task])}
        scored["seed"] = self.sweep.seed
        if scorer is not None:
            scored["scorer"] = scorer.identity_for(model) if isinstance(scorer, Judge) else scorer.identity
        if self.judge is not None:
            scored["counts"] = self.judge.config.model_dump(mode="json", include={"success", "invert", "scale"})
        return {"asked": asked, "scored": scored}

    def fingerprint(self, model: str) -> dict[str, str]:
        """The model's own fingerprint."""
        return {model: self.family[model].fingerprint}

    def ask(self, model: str, folder: Path) -> None:
        """Ask for all responses, unless an interrupted sweep has kept them."""
        path = folder / RESPONSES_FILE
        if path.is_file():
            return
        answers = self.answers
        if answers is None and self.sweep.generation == "endpoint" and not self.task.by_likelihood:
            answers = once(lambda: self._asked_on_server(model, folder))
        respond = answers.respond if answers else None
        size = self.config.batch_size or self.sweep.batch_size
        outcomes = run_tasks(self.family[model], [self.task], batch_size=size, respond=respond)
        if answers is not None and answers is not self.answers:
            answers.engine.save(folder / ENGINE_FILE)
        write_jsonl(path, outcomes)

    def _asked_on_server(self, model: str, folder: Path) -> Answers:
        from mechprobe.evals.rollouts.endpoint import ask_endpoint

        run = [(model, model, "")]
        with settings_named("sweep.endpoint"):
            return ask_endpoint(self.sweep.endpoint, self.family, [self.task], run, folder / JOURNAL_FILE)

    def judge_again(self, model: str, folder: Path) -> None:
        """Let the rule of the task judge the kept responses."""
        if self.deferred or not isinstance(self.task.scorer, Scorer):
            return
        path, by_sample = folder / RESPONSES_FILE, dict[str, list[Generated]]()
        for one in read_outcomes(path):
            finish = "length" if one.finish == "length" else "stop"
            by_sample.setdefault(one.sample_id, []).append(Generated(one.response, one.response_ids, finish))
        respond = lambda _model, _task, sample: by_sample[sample.id]  # noqa: E731 - a Responder of one line
        write_jsonl(path, run_tasks(self.family[model], [self.task], respond=respond))

    def cell(self, model: str, folder: Path) -> CellResult:
        """Score the kept responses."""
        outcomes, rest = read_outcomes(folder / RESPONSES_FILE), self._engine(folder)
        if self.judge is not None:
            texts, safety = self._texts(outcomes), self.info.group == "safety"
            verdicts = self._scored(model, outcomes, texts, folder)
            refused = [None if text is None else refuses(text) for text in texts] if safety else None
            return judged_cell(self.info, self.task, model, outcomes, verdicts, self.judge.config, refused, **rest)
        if self.reward is not None:
            rewards = self._scored(model, outcomes, self._texts(outcomes), folder)
            return reward_cell(self.info, model, outcomes, rewards, self.sweep.seed, **rest)
        return rule_cell(self.info, self.task, model, outcomes, **rest)

    def _engine(self, folder: Path) -> dict[str, Any]:
        from mechprobe.evals.result import Engine

        if self.answers is not None:
            return {"engine": self.answers.engine}
        path = folder / ENGINE_FILE
        return {"engine": Engine.load(path)} if path.is_file() else {}

    def _texts(self, outcomes: Sequence[Outcome]) -> list[str | None]:
        """What a scorer reads of each response; None for those that were cut."""
        encoder, think = encoders_of(self.family.tokenizers, [self.task])[self.task.text], self.task.think
        opened = think is not None and encoder.opens_thinking(prompt_of(self.task.samples[0]), think)
        return [scored_text(outcome, encoder.tokenizer, think, opened=opened) for outcome in outcomes]

    def _scored(
        self, model: str, outcomes: Sequence[Outcome], texts: Sequence[str | None], folder: Path
    ) -> list[float | None]:
        """A verdict or reward for each response; None for those that were cut."""
        samples = {sample.id: sample for sample in self.task.samples}
        judged = {
            place: Judged(Question(model, self.task.name, one.sample_id, 0, one.draw), samples[one.sample_id], text)
            for place, (one, text) in enumerate(zip(outcomes, texts, strict=True))
            if text is not None
        }
        every = list(judged.values())
        found: Sequence[float | None]
        if self.judge is not None:
            found = self.judge.verdicts(every, folder)
        else:
            assert self.reward is not None, "responses that are scored later have a judge or a reward model"
            found = self.reward.rewards(every)
        numbers = dict(zip(judged, found, strict=True))
        return [numbers.get(place) for place in range(len(outcomes))]

    def release(self) -> None:
        """Free judge or reward model."""
        for scorer in (self.judge, self.reward):
            if scorer is not None:
                scorer.release()


def item_benchmark(
    name: str, config: BenchmarkConfig, sweep: SweepConfig, family: ModelFamily, task: Task, judge: Judge | None = None
) -> ItemBenchmark:
    """A benchmark with items, checked before any model runs.

    Raises:
        InputError: An item does not fit the context, or rollouts are unusable.
        ConfigError: Another engine cannot answer the items, or a key is not set.
        ModelError: Judge or reward model cannot be used.
    """
    from mechprobe.evals.judging.judges import judge_of

    try:
        check_lengths(family, [task])
    except InputError as error:
        raise InputError(str(error).replace("tasks.max_new_tokens", "max_new_tokens of the benchmark")) from None
    first = next(iter(family))
    placed = {"device": first.device, "trust_remote_code": first.trust_remote_code}
    reward = None
    if config.judge is not None and judge is None:
        judge = judge_of(config.judge, **placed)
    if config.reward is not None:
        from mechprobe.evals.judging.reward import RewardModel

        reward = RewardModel(config.reward, **placed)
    answers = _imported(config, family, task)
    if answers is None and sweep.generation == "endpoint":
        require("httpx2", "An inference server")
        require_responses([task], "endpoint")
        check_key(sweep.endpoint, "sweep.endpoint")
    info = BenchmarkInfo(
        **common_info(name, config),
        **_scoring(name, task, judge, reward),
        source="rollouts" if answers else sweep.generation,
        decoding={} if task.by_likelihood else {**sampling_of(task), "think": task.think and list(task.think)},
        items=sha256_bytes(
            dump_json([[s.id, s.prompt, s.messages and list(s.messages)] for s in task.samples]).encode()
        ),
        n_items=len(task.samples),
        n_draws=task.n_draws,
    )
    return ItemBenchmark(info, config, sweep, family, task, judge, reward, answers)


def _imported(config: BenchmarkConfig, family: ModelFamily, task: Task) -> Answers | None:
    if not (config.rollouts or config.inspect):
        return None
    from mechprobe.evals.rollouts.imported import read_rollouts
    from mechprobe.evals.rollouts.inspect_logs import InspectLog

    require_responses([task], "import")
    sources: list[Any] = [*config.rollouts, *(InspectLog(path, model) for model, path in config.inspect.items())]
    return read_rollouts(sources, family, [task], [task], dict.fromkeys(family.names, ""))


def _scoring(name: str, task: Task, judge: Judge | None, reward: "RewardModel | None") -> Mapping[str, Any]:
    """Metric, kind of scorer, and the scorer in words."""
    slot = slot_of(name)
    if reward is not None:
        return {"metric": "reward mean", "scorer": "reward_model", "scoring": reward.config.model, "share": False}
    if judge is not None:
        found: JudgeConfig = judge.config
        who = next(filter(None, (found.function, found.verdicts, found.model)))
        metric = slot.metric if slot is not None and slot.kind == "judge" else "share"
        return {"metric": metric, "scorer": "judge", "scoring": f"{who} ({found.reads.replace('_', ' or ')})"}
    if name in (FORBIDDEN, ALLOWED):
        assert slot is not None, "both have a slot"
        return {"metric": slot.metric, "scorer": "rule", "scoring": task.scorer.spec}
    metric = f"avg@{task.n_draws}" if task.n_draws > 1 else "accuracy"
    if name in SLOTS and SLOTS[name].n == task.n_draws and SLOTS[name].kind == "rule":
        metric = SLOTS[name].metric
    return {"metric": metric, "scorer": "rule", "scoring": task.scorer.spec}
