"""Peak memory and CPU time of the stages that run models, at two numbers of tokens: the commands themselves, each in its own process.

    python -m benchmarks.stage_memory --out artifacts/benchmarks/stage_memory_cpu.json
    python -m benchmarks.stage_memory --models base=M/base sft=M/sft rl=M/rl --checkpoints M/points --model-dtype bfloat16

Without ``--models`` a small family with a vocabulary of 151,936 ids is built, whose embedding is most of it. The peak is the
largest resident memory of the whole process, imports and mapped files included. ``--against FOLDER`` runs the commands of another
copy of the repository in turn with these, and compares the CPU times.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import RESULTS, add_shared_options, begin, write_report

VOCABULARY = 151_936
STAGES = ("features", "evaluate", "intervene", "emergence")
_WORDS = [
    "the",
    "model",
    "reads",
    "a",
    "long",
    "text",
    "and",
    "writes",
    "what",
    "it",
    "means",
    "in",
    "few",
    "words",
    "so",
    "that",
    "people",
    "can",
    "check",
    "each",
    "of",
    "them",
]
_CHECKPOINTS = (50, 100)
_SETTINGS = """
text = {{ chat_template = false }}
prompts = {{ file = "prompts.jsonl" }}
localize = {{ sites = ["{site}"] }}
cache = {{ sites = ["{site}"], held_out_frac = 0.5, reader = "plain" }}
train_sae = {{ d_sae = 512, k = 16, n_tokens = 2048, batch_size = 256 }}
features = {{ n_shown = 1, n_examples = 1, gate = {{ min_fve = -1e9, min_ce_recovered = -1e9, max_dead_share = 1.0 }} }}
select = {{ rule = "ids:1,2,3" }}
emergence = {{ relie_steps = 2, pairs = false }}

[tasks]
file = "tasks.jsonl"
scorer = "numeric"
max_new_tokens = {new_tokens}

[intervene]
features = "ids:1,2,3"
edits_base = ["transplant"]
edits_tuned = ["transplant"]
doses = []
sizes = []
compare = []
leave_one_out = false
n_random = 1
n_shuffled = 1
rivals = ["pca"]
collateral_texts = 4

[models]
"""


def build(folder: Path, names: tuple[str, ...] = ("base", "sft", "rl")) -> tuple[dict[str, str], Path]:
    """Write a family and further checkpoints of ``rl``; returns the folders of the models and of the checkpoints."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    words = ["<eos>", "<pad>", *map(chr, range(32, 127))]
    letters = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    letters.pre_tokenizer, letters.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=letters, eos_token="<eos>", pad_token="<pad>")
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, tie_word_embeddings=True, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    model: Any = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16)
    points = folder / "points"
    for path in (*(folder / name for name in names), *(points / "rl" / f"step_{step}" for step in _CHECKPOINTS)):
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        with torch.no_grad():
            for value in model.parameters():
                value.add_(torch.randn_like(value) * 0.01)
    return {name: str(folder / name) for name in names}, points


def write_inputs(folder: Path, models: dict[str, str], *, prompts: int, length: int, new_tokens: int) -> None:
    """Prompts, tasks and settings of a run; ``length`` is that of a response in words."""
    draw = np.random.default_rng(0)

    def text(n: int) -> str:
        return " ".join(draw.choice(_WORDS, n))

    rows = [{"id": str(n), "prompt": f"{n}: {text(8)}", "response": text(length)} for n in range(prompts)]
    asked = [{"id": str(n), "task": "sum", "prompt": f"{n} + {n} = ", "answer": str(2 * n)} for n in range(2 * prompts)]
    for name, lines in (("prompts", rows), ("tasks", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    config = json.loads((Path(models["base"]) / "config.json").read_text(encoding="utf-8"))
    site = f"resid_post.{(config['num_hidden_layers'] - 1) // 2}"
    lines = [f"{json.dumps(name)} = {json.dumps(path)}\n" for name, path in models.items()]
    settings = _SETTINGS.format(site=site, new_tokens=new_tokens) + "".join(lines)
    (folder / "run.toml").write_text(settings, encoding="utf-8")


def commands(
    run: Path, points: Path | None, sizes: list[int], asked: list[str]
) -> Iterator[tuple[str, int, list[str]]]:
    """Every command with its number of samples; 0 for those that only prepare."""
    at = ["--config", str(run.parent / "run.toml"), "--run", str(run), "--force"]
    yield "cache", 0, ["cache", *at]
    yield "train-sae", 0, ["train-sae", *at]
    settings = {
        "features": "features.ce_samples={n}", "evaluate": "evaluate.n_per_task={n}",
        "intervene": "intervene.n_per_task={n} intervene.rival_samples={n}", "emergence": "emergence.relie_samples={n}",
    }  # fmt: skip
    extra = {"emergence": [] if points is None else ["--checkpoints", str(points)]}
    for stage in asked:
        if stage == "intervene":
            yield (
                "evaluate",
                0,
                ["evaluate", *at, "--set", "evaluate.n_per_task=16"],
            )  # enough for the half that selects
            yield "select", 0, ["select", *at]
        if stage == "emergence" and points is None:
            continue
        for n in sizes:
            sets = [part for one in settings[stage].format(n=n).split() for part in ("--set", one)]
            yield stage, n, [stage, *at, *extra.get(stage, []), *sets]


def measured(root: Path, arguments: list[str], threads: int) -> dict[str, float]:
    """Run one command of the repository in ``root``: its largest resident memory, CPU and wall time."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(threads)}
    began = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "mechprobe", *arguments], stdout=output, stderr=output, env=environment, cwd=root
        )
        _, status, used = os.wait4(process.pid, 0)
        output.seek(0)
        said = output.read().decode(errors="replace")
    if status:
        raise RuntimeError(f"mechprobe {arguments[0]} failed: {said.strip()[-600:]}")
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return {
        "peak_gib": round(used.ru_maxrss / unit, 3),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "wall_s": round(time.perf_counter() - began, 1),
    }


def main() -> None:
    """Run the benchmark and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shared_options(parser, out=RESULTS / "stage_memory_cpu.json", rounds=1)
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME=PATH", help="base, sft and rl")
    parser.add_argument("--checkpoints", type=Path, help="folder of further checkpoints, for emergence")
    parser.add_argument("--model-dtype", default="float32")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--samples", nargs="+", type=int, default=[3, 12], help="samples of each measurement")
    parser.add_argument("--length", type=int, default=40, help="words of a response")
    parser.add_argument("--new-tokens", type=int, default=12, help="longest response that is generated")
    parser.add_argument("--against", type=Path, help="another copy of the repository, measured in turn")
    parser.add_argument("--scratch", type=Path, help="folder for the run; a temporary one if not given")
    arguments = parser.parse_args()
    began, _ = begin(arguments)
    with tempfile.TemporaryDirectory(prefix="stage_memory_") as temporary:
        rows = list(_rows(arguments, arguments.scratch or Path(temporary)))
    for row in rows:
        row["models"] = sorted(name.split("=")[0] for name in arguments.models) or "built"
    body = {"rows": rows, "table": table(rows)}
    print(body["table"])
    # names only: a result tells nothing about the folders of a machine
    arguments.models = [pair.split("=", 1)[0] for pair in arguments.models]
    arguments.checkpoints = None if arguments.checkpoints is None else arguments.checkpoints.name
    arguments.against = None if arguments.against is None else arguments.against.name
    write_report(
        arguments, what="stage_memory", began=began, packages=("torch", "transformers", "mechprobe"), body=body
    )


def _rows(arguments: argparse.Namespace, scratch: Path) -> Iterator[dict[str, Any]]:
    """One row for each stage and number of samples."""
    scratch.mkdir(parents=True, exist_ok=True)
    models, points = dict(pair.split("=", 1) for pair in arguments.models), arguments.checkpoints
    if not models:
        models, points = build(scratch / "models")
    models = {name: str(Path(path).resolve()) for name, path in models.items()}
    sizes = [1, 2] if arguments.quick else arguments.samples
    length, new_tokens = (4, 2) if arguments.quick else (arguments.length, arguments.new_tokens)
    copies = {"here": Path(__file__).parents[1]} | ({"against": arguments.against} if arguments.against else {})
    for name in copies:
        (scratch / name).mkdir(exist_ok=True)
        write_inputs(scratch / name, models, prompts=2 * max(sizes), length=length, new_tokens=new_tokens)
    dtype = ["--model-dtype", arguments.model_dtype]
    points = None if points is None else points.resolve()
    plans = [list(commands(scratch / name / "run", points, sizes, arguments.stages)) for name in copies]
    for together in zip(*plans, strict=True):
        found = {}
        for (name, root), (stage, n, command) in zip(copies.items(), together, strict=True):
            found[name] = measured(root.resolve(), [*command, *(dtype if name == "here" else [])], arguments.threads)
            print(f"{stage} {n or ''} {name}: {found[name]}", flush=True)
        stage, n, _ = together[0]
        if n:
            yield {"stage": stage, "samples": n, "dtype": arguments.model_dtype, **found}


def table(rows: list[dict[str, Any]]) -> str:
    """The result as Markdown."""
    against = "against" in rows[0]
    lines = ["| stage | samples | peak, GiB | CPU, s |" + (" before: peak, GiB | CPU, s |" if against else "")]
    lines.append("|---|---|---|---|" + ("---|---|" if against else ""))
    for row in rows:
        cells = [row[name] for name in ("here", "against") if name in row]
        numbers = " | ".join(f"{cell['peak_gib']:.2f} | {cell['cpu_s']:.0f}" for cell in cells)
        lines.append(f"| `{row['stage']}` | {row['samples']} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
