"""One run: train an arm with ``mechprobe posttrain``, and evaluate base and every checkpoint on the same items."""

import fcntl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

import mechprobe as mp
from experiments.paper_c.design import SHIPPED, ArmConfig, SizeConfig
from experiments.paper_c.traces import GAME, GAMES, dev_items, held_out_games, training_set, write_examples
from mechprobe.evals.config import EvaluateConfig
from mechprobe.evals.tasks import Task
from mechprobe.lab.measure import SCORER
from mechprobe.lab.summary import shipped
from mechprobe.records import write_jsonl
from mechprobe.results import Result

LAB = "shared-marker"
MAX_NEW_TOKENS = 64


class Run(Result):
    """Scores of base and of every checkpoint of one run.

    Attributes:
        steps: Step of every checkpoint; the last is the end of training.
        right: Task → for base and every checkpoint a text of 1 (right) and 0, one digit an item.
        lengths: Task → mean response length in tokens, base first.
        cut: Task → share of responses that were cut at the limit, base first.
        loss: Mean training loss of the last tenth of the steps.
        prompts_sha256: Hash of the prompts that were trained on.
        visits: Prompts that were trained on, repetitions counted.
    """

    steps: tuple[int, ...]
    right: dict[str, tuple[str, ...]]
    lengths: dict[str, tuple[float, ...]]
    cut: dict[str, tuple[float, ...]]
    loss: float
    prompts_sha256: str
    visits: int

    def scores(self, task: str) -> Bool[ndarray, "model item"]:
        """Which responses are right; base is the first row."""
        return digits(self.right[task])

    def mean_lengths(self, tasks: Sequence[str]) -> Float[ndarray, " model"]:
        """Mean length over tasks."""
        return np.mean([self.lengths[task] for task in tasks], axis=0)


def digits(rows: Sequence[str]) -> Bool[ndarray, "model item"]:
    """Texts of 1 and 0 as an array."""
    return np.array([[digit == "1" for digit in row] for row in rows])


def do_run(
    arm: ArmConfig,
    seed: int,
    lr: float,
    out: Path,
    *,
    n_per_task: int,
    size: SizeConfig | None = None,
    dev: bool = False,
) -> Run:
    """Train and evaluate, or read what an earlier call has finished; another process that makes the same run is waited for."""
    folder = out / "runs" / arm.key(lr, seed, size and size.model_dump(mode="json"))
    file = folder / f"{'dev' if dev else 'run'}_{n_per_task}.json"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.is_file():
            base = base_of(arm, seed, size, out)
            prompts = write_examples(folder / "prompts.jsonl", training_set(arm.data, arm.n_items, seed))
            trained = mp.posttrain.sft(base, prompts, folder, settings(arm, seed, lr, dev), arm="arm")
            family = mp.ModelFamily.load({"base": str(base), **trained.models(folder / "arm")})
            tasks = dev_tasks(folder) if dev else eval_tasks(folder, arm.data in GAMES)
            evals = folder / file.stem.replace("run", "evals")
            outcomes = mp.evaluate_outcomes(family, tasks, evals, EvaluateConfig(n_per_task=n_per_task))
            read_run(outcomes, trained).save(file)
    return Run.load(file)


def settings(arm: ArmConfig, seed: int, lr: float, dev: bool = False) -> mp.posttrain.SftConfig:
    """The settings of `mechprobe posttrain`; as in the paper but for the learning rate, sizes and numbers of steps."""
    return mp.posttrain.SftConfig(
        prompts_per_step=arm.prompts_per_step,
        epochs=arm.epochs,
        lr=lr * arm.lr_factor,
        schedule=arm.schedule,
        warmup=0.1,
        weight_decay=0.01,
        checkpoints=() if dev else arm.checkpoints,
        seed=seed,
        state_every=10_000,
    )


def read_run(outcomes: Any, trained: mp.posttrain.PosttrainResult) -> Run:
    """What the experiments need of outcomes and training."""
    models = ["base", *(f"arm@step_{step:06d}" for step in trained.checkpoints), "arm"]
    right, lengths, cut = {}, {}, {}
    for task in outcomes.tasks:
        ids = outcomes.sample_ids(task)
        drawn = [[outcomes.draws(model, task, sample)[0] for sample in ids] for model in models]
        right[task] = tuple("".join(str(int(each.outcome == "right")) for each in row) for row in drawn)
        lengths[task] = tuple(float(np.mean([each.n_response_tokens for each in row])) for row in drawn)
        cut[task] = tuple(float(np.mean([each.cut for each in row])) for row in drawn)
    tail = [row["loss"] for row in trained.curve if row.get("loss") is not None][-max(1, trained.steps // 10) :]
    return Run(
        steps=(*trained.checkpoints, trained.steps),
        right=right,
        lengths=lengths,
        cut=cut,
        loss=float(np.mean(tail)),
        prompts_sha256=trained.prompts.sha256,
        visits=trained.prompts.visits,
    )


def eval_tasks(folder: Path, game: bool) -> list[Task]:
    """The held-out items of the lab's five skills, which pre-training never saw, and those of the game where it is trained."""
    tasks = mp.load_tasks(shipped(LAB) / "tasks.jsonl", scorer_spec=SCORER, max_new_tokens=MAX_NEW_TOKENS)
    return [*tasks, *(_written(folder, [(GAME, game) for game in held_out_games()]) if game else [])]


def dev_tasks(folder: Path) -> list[Task]:
    """The dev items of all five skills."""
    return _written(folder, [(item.skill, item) for item in dev_items()])


def _written(folder: Path, items: Sequence[tuple[str, Any]]) -> list[Task]:
    file = folder / "items.jsonl"
    write_jsonl(file, [{"id": i.id, "task": task, "prompt": i.prompt, "answer": i.answer} for task, i in items])
    return mp.load_tasks(file, scorer_spec=SCORER, max_new_tokens=MAX_NEW_TOKENS)


def base_of(arm: ArmConfig, seed: int, size: SizeConfig | None, out: Path) -> Path:
    """The lab's base, or one of another size, which is pre-trained as the lab's once for each seed."""
    if arm.base == SHIPPED or size is None:
        return shipped(LAB) / "base"
    from mechprobe.lab.builder import MarkerLab
    from mechprobe.lab.recipe import ModelConfig, PretrainConfig, get_recipe
    from mechprobe.random_state import isolated_random_state

    shape = ModelConfig(**size.model_dump(include={"n_layers", "d_model", "n_heads", "d_mlp"}))
    training = PretrainConfig(steps=size.steps, batch_size=size.batch_size, max_attempts=1)
    recipe = get_recipe(LAB).model_copy(
        update={"model": shape, "pretrain": training, "n_threads": 1, "enforce_gates": False}
    )
    folder = out / "bases" / f"{arm.base}-{size.steps}x{size.batch_size}-seed{seed}"
    with isolated_random_state(seed):
        MarkerLab(recipe, folder, seed).make_base()
    return folder / "base"
