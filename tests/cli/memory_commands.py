"""A small finished run of a tiny random family, and every command on it."""

import json
import string
from dataclasses import dataclass
from pathlib import Path

import torch

from mechprobe.cli import main
from tests.builders import build_family
from tests.sums import write_prompts

STOPS = [*string.ascii_lowercase, *string.digits]  # a random model never gives its end token
SETTINGS = [
    f"tasks.stop={STOPS}", "cache.reader=plain",
    "tasks.scorer=python:tests.sums:even_length", "tasks.max_new_tokens=6", "tasks.trained=['sums']", "localize.n_per_task=4",
    "localize.sites=['resid_post.0','resid_post.1']", "cache.max_prompts=24", "cache.held_out_frac=0.2", "train_sae.d_sae=48", "train_sae.k=4",
    "train_sae.n_tokens=600", "train_sae.batch_size=64", "train_sae.pool_rows=256", "features.ce_samples=4",
    "features.gate.min_fve=-9.0", "features.gate.min_ce_recovered=-99.0", "features.bootstrap_draws=0", "evaluate.n_per_task=40", "select.n_controls=1",
    "select.min_gained=1", "select.rule=top:4", "select.n_bootstrap=10", "intervene.features=top:3", "intervene.n_random=1",
    "intervene.n_shuffled=1", "intervene.n_per_task=4", "intervene.doses=[]", "intervene.sizes=[]", "intervene.workers=1",
    "intervene.edits_base=['transplant']", "intervene.edits_tuned=['ablate']", "intervene.max_new_tokens=6", "intervene.collateral_texts=4",
    "drift.draws=100", "drift.positions=40", "drift.lens_texts=4", "logprobs.draws=100", "probe.draws=100", "probe.linear.items=16",
    "probe.linear.folds=2", "weights.null_draws=1", "near=['base','rl']",
]  # fmt: skip
EMERGENCE = [
    "--layout", "together", "--seeds", "1", "--set", "emergence.draws=100", "emergence.top=4", "emergence.relie_samples=2",
    "emergence.relie_steps=2",
]  # fmt: skip


@dataclass(frozen=True)
class Small:
    """A finished run, and the files it was made from."""

    run: Path
    models: dict[str, Path]
    prompts: Path
    benchmarks: Path
    imported: Path


def make(folder: Path, until: str) -> Small:
    """Make the family, its prompts and tasks, and the run up to a stage."""
    names = ("base", "rl@step_000002", "rl", "sft")
    models = build_family(folder / "models", names=names, n_layers=2, d_model=16, noise=0.3)
    prompts = write_prompts(folder / "prompts.jsonl", 24)
    tasks, benchmarks = folder / "tasks.jsonl", folder / "benchmarks.toml"
    rows = [
        {"id": f"{task}-{i}", "task": task, "prompt": f"{i}{sign}{i % 5}=", "answer": str(i)}
        for task, sign in (("sums", "+"), ("products", "*"))
        for i in range(48)
    ]
    tasks.write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmarks.write_text(
        f'[benchmarks.sums]\nn_items = 4\ntask = "sums"\nfile = "{tasks.name}"\nscorer = "python:tests.sums:even_length"\nmax_new_tokens = 3\n'
    )
    run = folder / "run"
    given = ["--models", *(f"{name}={models[name]}" for name in ("base", "rl", "sft"))]
    given += ["--set", f"prompts.file={prompts}", f"tasks.file={tasks}", *SETTINGS]
    assert main(["run", "--run", str(run), "--until", until, *given]) == 0
    imported = folder / "cc_weights.pt"
    shapes = {"W_enc": (3, 16, 32), "W_dec": (32, 3, 16), "b_enc": (32,), "b_dec": (3, 16)}
    draw = torch.Generator().manual_seed(0)
    torch.save({name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}, imported)
    (folder / "cfg.json").write_text('{"dict_size": 32, "d_in": 16, "model_name": "tiny"}')
    return Small(run, models, prompts, benchmarks, imported)


def commands(small: Small, out: Path) -> dict[str, list[str]]:
    """Name → a command that writes to ``out``."""
    run, to, base = ["--run", str(small.run)], ["--out", str(out / "o")], str(small.models["base"])
    arms = ["--models", *(f"{name}={small.models[name]}" for name in ("base", "rl@step_000002", "rl"))]
    trained = [
        "--base",
        base,
        "--prompts",
        str(small.prompts),
        *to,
        "--set",
        "prompts_per_step=8",
        "--set",
        "max_new_tokens=4",
    ]
    trained += ["--set", "steps=2", "--set", "state_every=1", "--scorer", "python:tests.sums:digit_share"]
    return {
        "cache": ["cache", *run, *to],
        "train-sae": ["train-sae", *run, *to],
        "train-sae stream": ["train-sae", *run, *to, "--cache", str(out / "kept"), "--mode", "stream"],
        "train-sae ring": ["train-sae", *run, *to, "--cache", str(out / "kept"), "--mode", "ring", "--ring-gb", "0.01"],
        "features": ["features", *run, *to],
        "features seeds": ["features", *run, *to, "--seeds", "1"],
        "baselines": ["baselines", *run, *to, "--set", "baselines.n_tokens=600"],
        "evaluate": ["evaluate", *run, *to],
        "localize": ["localize", *run, *to],
        "select ig": ["select", *run, *to, "--ranking", "ig"],
        "select score": ["select", *run, *to, "--ranking", "score"],
        "select relie": ["select", *run, *to, "--ranking", "relie"],
        "intervene": ["intervene", *run, *to],
        "drift": ["drift", *run, *to],
        "weights": ["weights", *run, *to],
        "sweep": ["sweep", *run, *to, "--work", str(out / "work"), "--benchmarks", str(small.benchmarks)],
        "probe": ["probe", *run, *to],
        "dynamics": ["dynamics", "--table", str(Path(__file__).parents[2] / "experiments" / "paper_c" / "published" / "qwen3_1.7b.csv"), *to, "--set", "dynamics.draws=1000", "dynamics.resamples=0"],
        "logprobs": ["logprobs", *run, *to],
        "emergence": ["emergence", *to, "--work", str(out / "work"), *arms, "--prompts", str(small.prompts), "--sites", "resid_post.0", *EMERGENCE, *[x for x in SETTINGS if x.startswith(("train_sae","cache"))]],
        "posttrain sft": ["posttrain", "sft", *trained],
        "posttrain grpo": ["posttrain", "grpo", *trained],
        "report": ["report", *run],
        "import": ["crosscoder", "import", str(small.imported), "--cache", str(small.run / "cache"), "--scale", "1,1,1", *to],
        "export": ["crosscoder", "export", str(small.run / "crosscoder"), "--model", "rl", *to],
        "doctor": ["doctor", *arms],
        "plan": ["plan", *arms, "--card", "A100"],
    }  # fmt: skip
