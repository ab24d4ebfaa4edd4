"""Fits the rivals on the selection halves of the tasks: the difference between the models on their tokens, and the best doses."""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mechprobe.evals.tasks import Task
from mechprobe.files import read_json, write_json
from mechprobe.interventions.conditions.batches import DraftingRunner
from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.conditions.selection_tokens import SelectionTokens
from mechprobe.interventions.rivals.mean_difference import PLACES
from mechprobe.interventions.rivals.rival import RivalFit
from mechprobe.interventions.rivals.switched import N_VECTORS, centers_of
from mechprobe.progress import progress

_MOST_ROWS = 20_000
"""Tokens, evenly spaced among all, whose differences are clustered for switched steering."""


def fitting_tasks(runner: Runner, selecting: Sequence[Task]) -> list[Task]:
    """The samples that fit rivals and choose a read-out: the first of the selection half of every task in the pooled row."""
    config = runner.config
    held_out = [task for task in selecting if task.name not in config.trained]
    limits = {task.name: task.max_new_tokens for task in runner.tasks}
    return [
        replace(
            task.take(config.rival_samples),
            max_new_tokens=limits.get(task.name, config.max_new_tokens or task.max_new_tokens),
        )
        for task in held_out
    ]


def fitted(runner: Runner, conditions: Sequence[Condition], tokens: SelectionTokens, folder: Path) -> RivalFit | None:
    """The fit of the rivals among ``conditions``, kept in ``folder`` until the stage is finished; None without rivals."""
    rivals = [condition for condition in conditions if condition.how == "rival"]
    if not rivals:
        return None
    tensors, doses = folder / "part-rivals.safetensors", folder / "part-rival-doses.json"
    if doses.is_file():
        return _read(tensors, read_json(doses))
    fit = fit_difference(runner, tokens)
    fit = replace(fit, doses=best_doses(runner, rivals, tokens.tasks, fit))
    _write(fit, tensors)
    write_json(doses, dict(fit.doses))
    return fit


@torch.no_grad()
def fit_difference(runner: Runner, tokens: SelectionTokens) -> RivalFit:
    """Means, principal components, coordinates and clusters of r_tuned − r_base on the prompts and the tuned model's responses.

    Special tokens, and positions that the crosscoder does not describe, are left out.
    """
    base, tuned = runner.config.base, runner.config.tuned
    batches = list(tokens.batches([base, tuned]))
    rows = torch.cat([batch.x[tuned] - batch.x[base] for batch in batches])
    response, last = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("response", "last"))
    products = rows.double().T @ rows.double()
    components = torch.linalg.eigh(products).eigenvectors.flip(1).T.float().contiguous()
    groups = dict(zip(PLACES, (rows, rows[last], rows[response]), strict=True))
    means = {
        place: group.double().mean(dim=0).float() if len(group) else torch.zeros(rows.shape[1])
        for place, group in groups.items()
    }
    some = rows[:: max(1, len(rows) // _MOST_ROWS)]
    coordinates = products.diagonal().argsort(descending=True, stable=True)
    centers = {k: centers_of(some, k, seed=runner.config.seed) for k in N_VECTORS}
    return RivalFit(means, components, coordinates, centers)


def best_doses(runner: Runner, rivals: Sequence[Condition], tasks: Sequence[Task], fit: RivalFit) -> dict[str, float]:
    """``host|rival`` → the dose that comes nearest to the donor, by the pooled accuracy of the selection halves.

    In the base model that is the highest accuracy; in the tuned model the one nearest to the clean base's, because a loss beyond
    it is damage. Among equal doses the smallest is taken.
    """
    config, tuning = runner.config, copy(runner)
    tuning.tasks = list(tasks)
    wanted = [condition for condition in rivals if runner.rivals[condition.features].tuned]
    wanted.sort(key=lambda condition: condition.model)  # one host after the other, because one is in memory
    doses, found = sorted(config.rival_doses), dict[str, float]()
    drafting = DraftingRunner(tuning)
    clean = Condition("base", config.base, "clean", "none", "clean", "clean")
    floor = _n_right(drafting.run([clean])[0]) if wanted else 0
    with progress(len(wanted) * len(doses), "choosing doses", unit="doses") as advance:
        for condition in wanted:
            key, changes = f"{condition.model}|{condition.features}", []
            for dose in doses:
                tuning.fit = replace(fit, doses={key: dose})
                changes.append(tuning.change(condition))
            codes = drafting.run([condition] * len(doses), changes)
            n_right = dict(zip(doses, map(_n_right, codes), strict=True))
            gains = condition.model == config.base
            found[key] = min(doses, key=lambda dose, n=n_right, up=gains: -n[dose] if up else abs(n[dose] - floor))
            advance(len(doses), rival=condition.features)
    return found


def _n_right(codes: Mapping[str, str]) -> int:
    return "".join(codes.values()).count("R")


def _write(fit: RivalFit, path: Path) -> None:
    means = {f"mean|{place}": mean for place, mean in fit.means.items()}
    centers = {f"centers|{k}": vectors for k, vectors in fit.centers.items()}
    save_file({"components": fit.components, "coordinates": fit.coordinates, **means, **centers}, path)


def _read(path: Path, doses: dict[str, float]) -> RivalFit:
    found = load_file(path)
    parts = {
        kind: {k.partition("|")[2]: v for k, v in found.items() if k.startswith(f"{kind}|")}
        for kind in ("mean", "centers")
    }
    centers = {int(k): vectors for k, vectors in parts["centers"].items()}
    return RivalFit(parts["mean"], found["components"], found["coordinates"], centers, doses)
