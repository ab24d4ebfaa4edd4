"""The families on which `benchmarks.plan_against_runs` compares estimates with runs: the embedded lab, and a larger one of random weights.

    python -m benchmarks.plan_families --out FOLDER      # builds the larger family: base, sft and rl of 344M parameters, 2 GB

It has the shape of Qwen3 with 12 layers, a vocabulary of 151,936, tied embeddings, weights in bfloat16 and a chat template. Its
tokenizer is trained on this repository.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
LAB = ROOT / "artifacts" / "lab" / "shared-marker"
CHAIN = ("evaluate", "localize", "cache", "train-sae", "features", "select", "intervene", "report")
SIDE = ("drift", "sweep", "logprobs", "probe", "dynamics", "weights", "baselines")
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SETTINGS = """
name = "Random family"
[models]
base = "{models}/base"
sft = "{models}/sft"
rl = "{models}/rl"
[prompts]
file = "prompts.jsonl"
[text]
chat_template = true
[tasks]
file = "tasks.jsonl"
scorer = "python:benchmarks.plan_families:even"
max_new_tokens = 12
[localize]
sites = ["resid_post.5"]
[cache]
sites = ["resid_post.5"]
[train_sae]
d_sae = 2048
k = 32
n_tokens = 8192
batch_size = 512
[features]
ce_samples = 2
n_shown = 2
gate = {{min_fve = -9, min_ce_recovered = -99, max_dead_share = 1}}
[select]
rule = "ids:1,2,3,4,5,6,7,8"
n_controls = 4
[intervene]
n_per_task = 8
n_random = 1
n_shuffled = 1
n_shifted = 0
rivals = ["pca"]
sizes = []
doses = []
compare = []
rival_samples = 4
rival_doses = [1.0]
collateral_texts = 4
leave_one_out = false
[drift]
lens_texts = 0
[logprobs]
max_prompts = 4
[sweep.benchmarks.own]
file = "tasks.jsonl"
task = "even"
scorer = "python:benchmarks.plan_families:even"
max_new_tokens = 12
[probe.linear]
items = 16
sites = ["resid_post.5"]
[weights]
top_k = 4
exact_up_to = 256
null_draws = 1
[baselines]
n_tokens = 4096
"""


class Step(NamedTuple):
    """A command whose estimate is compared: the name of its stage in the estimate, and its arguments."""

    stage: str
    arguments: list[str]


def even(response: str, answer: str) -> bool:
    """Calls half of all responses right; those of random weights are cut at the limit, so nothing is gained, and the set is named."""
    del answer
    return sum(response.encode()) % 2 == 0


def steps_of(family: str, folder: Path, models: Path | None) -> list[Step]:
    """The commands of a family, in an order in which every stage finds what it reads; writes the files that they need."""
    folder.mkdir(parents=True, exist_ok=True)
    if family == "lab":
        start = ["--config", str(LAB / "run.toml")]
        checkpoints = ["--checkpoints", str(LAB / "checkpoints")]
        base, prompts = LAB / "base", _lab_prompts(folder)
    else:
        if models is None:
            raise SystemExit(
                "the family 'random' needs --models FOLDER; `python -m benchmarks.plan_families` builds one"
            )
        start, checkpoints, base = ["--config", str(_settings(folder, models))], [], models / "base"
        prompts = folder / "prompts.jsonl"
    run = ["--run", str(folder / "run")]
    steps = [Step(name, [name, *run, *(start if name != "report" else [])]) for name in CHAIN]
    many = {"drift", "sweep", "logprobs"}
    side = [name for name in SIDE if family == "lab" or name != "dynamics"]  # which needs checkpoints
    steps += [Step(name, [name, *run, *start, *(checkpoints if name in many else [])]) for name in side]
    if family == "lab":
        small = [
            "--set",
            "cache.max_prompts=300",
            "--set",
            "train_sae.n_tokens=100000",
            "--set",
            "emergence.pairs=false",
        ]
        other = ["--run", str(folder / "emergence")]
        steps.append(Step("emergence", ["emergence", *other, *start, *checkpoints, "--sites", "resid_post.2", *small]))
    sizes = {"lab": (20, 32, 6), "random": (2, 4, 1)}[family]
    arms = ["--base", str(base), "--prompts", str(prompts), "--out", str(folder / "arms"), "--checkpoints", ""]
    new = ["--set", "max_new_tokens=12", "--scorer", "python:benchmarks.plan_families:even"]
    sft = ["--set", f"steps={sizes[0]}", "--set", f"prompts_per_step={sizes[1]}"]
    grpo = ["--set", f"steps={sizes[2]}", "--set", f"prompts_per_step={sizes[1]}", "--set", "n_generations=2", *new]
    steps.append(Step("posttrain sft", ["posttrain", "sft", *arms, *sft]))
    steps.append(Step("posttrain grpo", ["posttrain", "grpo", *arms, *grpo]))
    return steps


def _lab_prompts(folder: Path) -> Path:
    """The tasks of the lab as prompts with responses."""
    rows = [json.loads(line) for line in (LAB / "tasks.jsonl").read_text(encoding="utf-8").splitlines()][:256]
    given = (
        {"id": row["id"], "prompt": row["prompt"], "response": str(row["answer"]), "answer": row["answer"]}
        for row in rows
    )
    return _lines(folder / "posttrain.jsonl", given)


def _settings(folder: Path, models: Path) -> Path:
    """Settings, prompts and tasks of the random family."""
    words, draw = _words(), random.Random(0)
    text = [" ".join(draw.choices(words, k=60)) for _ in range(24)]
    rows = (
        {"id": f"p{n}", "prompt": each[:120], "response": each[120:], "answer": str(n)} for n, each in enumerate(text)
    )
    _lines(folder / "prompts.jsonl", rows)
    tasks = (
        {"id": f"t{n}", "task": "even", "prompt": " ".join(draw.choices(words, k=20)), "answer": "0"} for n in range(32)
    )
    _lines(folder / "tasks.jsonl", tasks)
    path = folder / "run.toml"
    path.write_text(_SETTINGS.format(models=models.resolve()), encoding="utf-8")
    return path


def _words() -> list[str]:
    return (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split()


def _lines(path: Path, rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def build(out: Path) -> None:
    """Write base, sft and rl. The tuned models differ from base by noise of 10 % and 3 % of each weight's spread."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tokenizer = _tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=151936, hidden_size=1024, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, tie_word_embeddings=True, max_position_embeddings=40960, dtype="bfloat16",
        bos_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model: Any = Qwen3ForCausalLM(config)
    model.to(torch.bfloat16)
    base = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    for number, (name, share) in enumerate((("base", 0.0), ("sft", 0.1), ("rl", 0.03))):
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                clean = base[key].float()
                noise = torch.randn(clean.shape, generator=generator) * share * clean.std()
                weight.copy_((clean + noise if share else clean).to(torch.bfloat16))
        model.save_pretrained(out / name, max_shard_size="250MB")
        tokenizer.save_pretrained(out / name)
        print(f"written: {out / name}")


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made: Any = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    files = [
        str(path)
        for folder in ("docs", "mechprobe")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".md", ".py")
    ]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train(files, trainers.BpeTrainer(vocab_size=16000, initial_alphabet=alphabet, show_progress=False))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
    )
    fast.chat_template = _TEMPLATE
    return fast


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new folder for the three models")
    build(parser.parse_args().out)
