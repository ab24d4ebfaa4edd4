"""Fits the rivals on the selection halves of the tasks: the difference between the models on their tokens, and the best doses."""

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechprobe.data.encoding import Ids, PromptEncoder
from mechprobe.evals.answering import prompt_of, run_tasks
from mechprobe.evals.tasks import Task
from mechprobe.files import read_json, write_json
from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.rivals.mean_difference import PLACES
from mechprobe.interventions.rivals.rival import RivalFit
from mechprobe.interventions.rivals.switched import N_VECTORS, centers_of
from mechprobe.models.generation import left_pad, length_batches
from mechprobe.models.residuals import residuals_plain
from mechprobe.progress import progress

_BATCH = 64
_MOST_ROWS = 20_000
"""Tokens, evenly spaced among all, whose differences are clustered for switched steering."""


def fitting_tasks(runner: Runner, selecting: Sequence[Task]) -> list[Task]:
    """The samples that fit rivals: the first of the selection half of every task that enters the pooled row."""
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


def fitted(runner: Runner, conditions: Sequence[Condition], tasks: Sequence[Task], folder: Path) -> RivalFit | None:
    """The fit of the rivals among ``conditions``, kept in ``folder`` until the stage is finished; None without rivals."""
    rivals = [condition for condition in conditions if condition.how == "rival"]
    if not rivals:
        return None
    tensors, doses = folder / "part-rivals.safetensors", folder / "part-rival-doses.json"
    if doses.is_file():
        return _read(tensors, read_json(doses))
    fit = fit_difference(runner, tasks)
    fit = replace(fit, doses=best_doses(runner, rivals, tasks, fit))
    _write(fit, tensors)
    write_json(doses, dict(fit.doses))
    return fit


@torch.no_grad()
def fit_difference(runner: Runner, tasks: Sequence[Task]) -> RivalFit:
    """Means, principal components and clusters of r_tuned − r_base on the prompts and the tuned model's responses.

    Special tokens, and positions that the crosscoder does not describe, are left out.
    """
    parts = list(_differences(runner, tasks))
    rows, response, last = (torch.cat([part[index] for part in parts]) for index in range(3))
    products = rows.double().T @ rows.double()
    components = torch.linalg.eigh(products).eigenvectors.flip(1).T.float().contiguous()
    groups = dict(zip(PLACES, (rows, rows[last], rows[response]), strict=True))
    means = {
        place: group.double().mean(dim=0).float() if len(group) else torch.zeros(rows.shape[1])
        for place, group in groups.items()
    }
    some = rows[:: max(1, len(rows) // _MOST_ROWS)]
    return RivalFit(means, components, {k: centers_of(some, k, seed=runner.config.seed) for k in N_VECTORS})


def _differences(
    runner: Runner, tasks: Sequence[Task]
) -> Iterator[tuple[Float[Tensor, "row d_model"], Bool[Tensor, " row"], Bool[Tensor, " row"]]]:
    """Yield, per batch, the differences of the tokens, which are of responses, and which end a prompt."""
    family, config = runner.family, runner.config
    sequences = list(_sequences(runner, tasks))
    special = torch.tensor(sorted(family.tokenizer.all_special_ids))
    for batch in length_batches([len(ids) for ids, _ in sequences], _BATCH):
        chosen = [sequences[index] for index in batch]
        ids, attention = left_pad([ids for ids, _ in chosen], family.pad_id, "cpu")
        x = {}
        for model in (family[config.base], family[config.tuned]):
            inputs = (ids.to(model.input_device), attention.to(model.input_device))
            x[model.name] = residuals_plain(model, *inputs, [runner.site])[runner.site].float().cpu()
        place = attention.long().cumsum(1) - 1
        kept = attention.bool() & runner.leaves.mask(place, x)
        starts = torch.tensor([n for _, n in chosen])[:, None]
        last, plain = place == starts - 1, ~torch.isin(ids, special)
        taken = kept & (plain | last)  # a chat template may end a prompt with a special token
        yield (x[config.tuned] - x[config.base])[taken], (place >= starts)[taken], last[taken]


def _sequences(runner: Runner, tasks: Sequence[Task]) -> Iterator[tuple[Ids, int]]:
    """Yield the token ids of every prompt with the tuned model's first response, and the length of the prompt."""
    tuned = runner.family[runner.config.tuned]
    responses = {}
    for outcome in run_tasks(tuned, tasks, batch_size=runner.config.batch_size):
        responses.setdefault((outcome.task, outcome.sample_id), outcome.response_ids)
    for task in tasks:
        encoder = PromptEncoder.of(runner.family.tokenizers, task.text)
        for sample in task.samples:
            prompt = encoder.encode(prompt_of(sample))
            yield (*prompt, *responses[task.name, sample.id])[: runner.family.max_context], len(prompt)


def best_doses(runner: Runner, rivals: Sequence[Condition], tasks: Sequence[Task], fit: RivalFit) -> dict[str, float]:
    """``host|rival`` → the dose that comes nearest to the donor, by the pooled accuracy of the selection halves.

    In the base model that is the highest accuracy; in the tuned model the one nearest to the clean base's, because a loss beyond
    it is damage. Among equal doses the smallest is taken.
    """
    config, tuning = runner.config, copy(runner)
    tuning.tasks = list(tasks)
    wanted = [condition for condition in rivals if runner.rivals[condition.features].tuned]
    doses, found = sorted(config.rival_doses), dict[str, float]()
    base = tuning.run(Condition("base", config.base, "clean", "none", "clean", "clean")) if wanted else {}
    floor = _n_right(base)
    with progress(len(wanted) * len(doses), "choosing doses", unit="doses") as advance:
        for condition in wanted:
            key, misses = f"{condition.model}|{condition.features}", {}
            for dose in doses:
                tuning.fit = replace(fit, doses={key: dose})
                n_right = _n_right(tuning.run(condition))
                misses[dose] = -n_right if condition.model == config.base else abs(n_right - floor)
                advance(1, rival=condition.features)
            found[key] = min(misses, key=lambda dose: misses[dose])
    return found


def _n_right(codes: Mapping[str, str]) -> int:
    return "".join(codes.values()).count("R")


def _write(fit: RivalFit, path: Path) -> None:
    means = {f"mean|{place}": mean for place, mean in fit.means.items()}
    centers = {f"centers|{k}": vectors for k, vectors in fit.centers.items()}
    save_file({"components": fit.components, **means, **centers}, path)


def _read(path: Path, doses: dict[str, float]) -> RivalFit:
    found = load_file(path)
    parts = {
        kind: {k.partition("|")[2]: v for k, v in found.items() if k.startswith(f"{kind}|")}
        for kind in ("mean", "centers")
    }
    centers = {int(k): vectors for k, vectors in parts["centers"].items()}
    return RivalFit(parts["mean"], found["components"], centers, doses)
