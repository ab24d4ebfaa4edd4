"""Writing the folder of a compiled lab: base, rl, tasks, prompts, a configuration for ``mechprobe run``, and the truth."""

from collections.abc import Set
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from mechprobe.evals.answering import run_tasks
from mechprobe.evals.summary import accuracy_of
from mechprobe.evals.tasks import load_tasks
from mechprobe.files import write_bytes, write_json, write_text
from mechprobe.lab.compiled.design import DIGITS, N_STEPS, OPS, ORDERS, SITE, TRAINED, Design
from mechprobe.lab.compiled.weights import build_model
from mechprobe.lab.tokenizer import build_tokenizer
from mechprobe.models.family import ModelFamily
from mechprobe.posttrain.training import quiet
from mechprobe.records import Sample, write_jsonl
from mechprobe.stage_folder import Stage

NAME = "compiled"
"""Name of the recipe."""
TRUTH_FILE, DIRECTIONS_FILE = "truth.json", "directions.safetensors"
CAVEAT = (
    "Both models were written by hand, without any training: a test of the tool against a known answer, no evidence about "
    "trained models."
)
_RUN = """\
# mechprobe run --config run.toml: the whole pipeline on this lab. Paths are relative to this file.

name = "Compiled lab, rank {rank}"
notes = [
    "{caveat}",
    "The models differ at {site} by one direction for each of {rank} ops, and by decoys that no later block reads.",
]
near = ["base", "rl"]

[models]
base = "base"
rl = "rl"

[tasks]
file = "tasks.jsonl"
scorer = "exact"
max_new_tokens = 5
trained = ["{trained}"]

[prompts]
file = "prompts.jsonl"

[cache]
responses = ["base@0.0", "rl@0.0"]
max_new_tokens = 5
generation_batch = 512

[train_sae]
variant = "batchtopk"
d_sae = 96
k = 3
batch_size = 1024
n_tokens = 1000000
lr = 3e-3

[select]
rule = "agnostic"
ranking = "ig"
threshold = 0.1  # where the dictionary splits an op in two, the smaller half has less than the default of 0.2

[intervene]
max_new_tokens = 5
"""


def build_compiled(
    out: Path | str, *, rank: int = 4, seed: int = 0, n_items: int = 800, n_prompts: int = 1500, force: bool = False
) -> dict[str, Any]:
    """Write a compiled lab to a folder and return its manifest.

    Args:
        out: Folder of the lab.
        rank: Number of contested ops, 1 to 10.
        seed: Seed of directions, readings, decoys and items.
        n_items: Number of items over all skills. Each has a contested op.
        n_prompts: Number of prompts for the activation store, with any ops.
        force: Whether to empty the folder of an earlier lab and start again.

    Raises:
        ConfigError: The rank is not between 1 and 10.
        ArtifactError: The folder holds other work.
    """
    design = Design(rank, seed)
    recipe = {"name": NAME, "rank": rank, "n_items": n_items, "n_prompts": n_prompts}
    with Stage.open(Path(out), name="lab", config={"recipe": recipe, "seed": seed}, force=force) as stage:
        return stage.manifest if stage.manifest is not None else _build(stage, design, n_items, n_prompts)


def _build(stage: Stage, design: Design, n_items: int, n_prompts: int) -> dict[str, Any]:
    tokenizer, folder = build_tokenizer(), stage.folder
    arms = (("base", design.base_readings), ("rl", design.tuned_readings))
    for name, readings in arms:
        with quiet():
            build_model(design, readings, decoys=name == "rl").save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
    tasks = items(design, n_items, contested=True)
    write_jsonl(folder / "tasks.jsonl", (sample.to_json() for sample in tasks))
    asked = items(design, n_prompts, contested=False, taken={sample.prompt for sample in tasks})
    write_jsonl(folder / "prompts.jsonl", ({"id": item.id, "task": item.task, "prompt": item.prompt} for item in asked))
    write_text(folder / "run.toml", _RUN.format(rank=design.rank, trained=TRAINED, site=SITE, caveat=CAVEAT))
    _write_truth(folder, design)
    results = {"caveat": CAVEAT, "trained_skill": TRAINED, "accuracy": _accuracy(folder)}
    names = ["tasks.jsonl", "prompts.jsonl", TRUTH_FILE, DIRECTIONS_FILE]
    names += [str(file.relative_to(folder)) for arm, _ in arms for file in sorted((folder / arm).iterdir())]
    counts = {"items": n_items, "corpus_prompts": n_prompts}
    return stage.finish(outputs=names, results=results, seed=design.seed, counts=counts)


def _write_truth(folder: Path, design: Design) -> None:
    """Write what is true: each direction by name, and what the names mean."""
    directions = {name: vector.astype(np.float32) for name, vector in design.directions.items()}
    write_bytes(folder / DIRECTIONS_FILE, save(directions))
    ops = list(enumerate(OPS[: design.rank]))
    truth = {
        "rank": design.rank,
        "site": SITE,
        "contested": {op: {"rl": f"reading{index}", "base": f"reading{index + 1}"} for index, op in ops},
        "decoys": {f"decoy{index}": tokens for index, tokens in enumerate(design.decoy_tokens)},
        "readings": {f"reading{index}": row.tolist() for index, row in enumerate(design.readings)},
        "orders": ORDERS,
    }
    write_json(folder / TRUTH_FILE, truth)


def _accuracy(folder: Path) -> dict[str, Any]:
    """Accuracy of both models on each skill, measured."""
    tasks = load_tasks(folder / "tasks.jsonl", scorer_spec="exact", max_new_tokens=5)
    family = ModelFamily.load({name: str(folder / name) for name in ("base", "rl")})
    found = {name: accuracy_of(run_tasks(family[name], tasks)) for name in family.names}
    return {
        name: {task: {"accuracy": row.value, "n": row.n} for task, row in rows.items()} for name, rows in found.items()
    }


def items(design: Design, n: int, *, contested: bool, taken: Set[str] = frozenset()) -> list[Sample]:
    """Items with the answers of the tuned model, skills in turn; no prompt comes twice.

    Args:
        design: The truth of the lab.
        n: Number of items.
        contested: Whether each item has a contested op, which the base model answers wrong.
        taken: Prompts to leave out.
    """
    draw, seen, samples = np.random.default_rng([design.seed, 3, int(contested)]), set(taken), []
    words = list(ORDERS)
    while len(samples) < n:
        word = words[len(samples) % len(words)]
        ops, digits = draw.integers(0, len(OPS), N_STEPS), draw.integers(0, len(DIGITS), N_STEPS)
        steps = [(int(op), int(digit)) for op, digit in zip(ops, digits, strict=True)]
        prompt = f"{word} " + "".join(f"{OPS[op]}{digit}" for op, digit in steps) + "?"
        if prompt in seen or (contested and (ops >= design.rank).all()):
            continue
        seen.add(prompt)
        answer = design.answer(word, steps, design.tuned_readings)
        samples.append(Sample(f"{word}-{len(samples)}", word, prompt, answer))
    return samples
