"""Build a tiny chat family that thinks, as folders that mechprobe reads like those of real post-trained models.

    python experiments/chat_family/build.py models/chat     # about a minute on one idle CPU core

The family has what real ones have: a base whose tokenizer has no chat template and another end token, an SFT model in several
shards, and an "RL" model that is a LoRA adapter and thinks between ``<think>`` tags, at a length that the problem decides.

All models are asked for sums and differences. In pre-training a minority of responses thinks, one step at a time, and is
right; the others give the first number as the answer, unless the second is 1 or 2. So base answers at once and mostly wrong.
The adapter is trained on thought-out, right responses to sums alone. It stands for what RL keeps, without sampling.
"""

import argparse
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END, TURN, TURN_END, THINK, THINK_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and m.reasoning_content and loop.last %}"
    "<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LIMIT = 30
"""Response limit of the run, in tokens: it cuts the thinking wherever the second number is above 4, which is half of the items."""
SIGNS = {"plus": 1, "minus": -1}
TOML = """\
name = "A chat family that thinks"
near = ["base", "rl"]

[models]
base = "base"                          # no chat template, and another end token
sft = "sft"                            # several shards
rl = "rl"                              # a LoRA adapter of base

[text]
chat_template = true                   # that of sft and rl, for all models

[prompts]
file = "prompts.jsonl"                 # one {{"messages": [{{"role": "user", "content": "12+3?"}}]}} per line

[tasks]
file = "tasks.jsonl"                   # one {{"task": "plus", "messages": [...], "answer": "15"}} per line
scorer = "numeric"                     # reads what follows </think>
trained = ["plus"]                     # tasks that post-training saw
max_new_tokens = {limit}                    # cuts half of the thinking, so that the run shows how it is counted

[cache]
responses = ["base@1.0", "rl@0.0"]     # both models answer the prompts
max_new_tokens = 48

[train_sae]
d_sae = 256
k = 12
n_tokens = 250_000
"""


class Problem(NamedTuple):
    """``first`` plus or minus ``second``, as ``task`` says."""

    task: str
    first: int
    second: int

    @property
    def question(self) -> str:
        """The message of the user."""
        return f"{self.first}{'+-'[SIGNS[self.task] < 0]}{self.second}?"

    @property
    def answer(self) -> int:
        """The right answer."""
        return self.first + SIGNS[self.task] * self.second

    @property
    def thinking(self) -> str:
        """The problem one step smaller at a time: ``27+2 28+1 29+0``."""
        steps = (Problem(self.task, self.first + SIGNS[self.task] * n, self.second - n) for n in range(self.second + 1))
        return " ".join(step.question[:-1] for step in steps)

    def prompt(self) -> str:
        """The rendered prompt."""
        return f"{TURN}user\n{self.question}{TURN_END}\n{TURN}assistant\n"

    def thought_out(self, end: str) -> str:
        """A right response with its thinking."""
        return f"{THINK}\n{self.thinking}\n{THINK_END}\n\n{self.answer}{end}"

    def hasty(self, end: str) -> str:
        """A response at once, which is right only for small steps."""
        return f"{self.answer if self.second <= 2 else self.first}{end}"


def problems(seed: int) -> list[Problem]:
    """Every problem once, in an order that the seed decides."""
    found = [Problem(task, first, second) for task in SIGNS for first in range(12, 60) for second in range(1, 9)]
    random.Random(seed).shuffle(found)
    return found


def build_tokenizer(*, chat: bool) -> "PreTrainedTokenizerFast":
    """One token per number below 100 and per other character. Only the tokenizer for chats has a template."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [chr(code) for code in range(32, 127) if not chr(code).isdigit()]
    words = [
        END,
        TURN,
        TURN_END,
        THINK,
        THINK_END,
        "<unk>",
        *map(str, range(100)),
        *characters,
        "\n",
        "user",
        "assistant",
        "system",
    ]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"user|assistant|system|[1-9]\d|[\s\S]"), behavior="isolated")
    core.decoder = decoders.Fuse()
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=TURN_END if chat else END,
        pad_token=END,
        unk_token="<unk>",
        padding_side="left",
    )
    tokenizer.add_tokens([AddedToken(word, special=True) for word in (END, TURN, TURN_END)], special_tokens=True)
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in (THINK, THINK_END)])
    if chat:
        tokenizer.chat_template = TEMPLATE
    return tokenizer


Document = tuple[str, str]
"""A rendered prompt and a response; the loss is on the response."""


def train(
    model: Any,
    tokenizer: "PreTrainedTokenizerFast",
    draw: Callable[[random.Random], Document],
    *,
    steps: int,
    lr: float,
    seed: int,
) -> float:
    """Train a model in place on drawn documents, 32 a step, with AdamW and cosine decay; returns the last loss."""
    rng = random.Random(seed)
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    loss = torch.tensor(0.0)
    model.train()
    for _ in range(steps):
        loss = model(**_batch(tokenizer, [draw(rng) for _ in range(32)])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.eval()
    return loss.item()


def _batch(tokenizer: "PreTrainedTokenizerFast", documents: Sequence[Document]) -> dict[str, torch.Tensor]:
    rows = [tuple(tokenizer(text, add_special_tokens=False).input_ids for text in document) for document in documents]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    ids = torch.full((len(rows), width), 0)
    labels = torch.full((len(rows), width), -100)
    for index, (prompt, response) in enumerate(rows):
        ids[index, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        labels[index, len(prompt) : len(prompt) + len(response)] = torch.tensor(response)
    return {"input_ids": ids, "labels": labels}


def build(folder: Path, *, steps: int = 1000, seed: int = 0) -> None:
    """Write ``base``, ``sft``, ``rl``, ``prompts.jsonl``, ``tasks.jsonl`` and ``run.toml`` into ``folder``.

    Args:
        folder: Folder of the family.
        steps: Steps of pre-training; SFT and the adapter take a fifth of them each.
        seed: Seed of weights, documents and items.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen3Config

    plain, chat = build_tokenizer(chat=False), build_tokenizer(chat=True)
    end, pad = (int(str(token)) for token in (plain.eos_token_id, plain.pad_token_id))
    items = problems(seed)
    sums = [item for item in items if item.task == "plus"]
    torch.set_num_threads(1)  # the last bits of a training depend on the number of threads
    torch.manual_seed(seed)
    base: Any = AutoModelForCausalLM.from_config(
        Qwen3Config(
            vocab_size=len(plain), hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, tie_word_embeddings=False,
            bos_token_id=None, eos_token_id=end, pad_token_id=pad,
        )
    )  # fmt: skip

    def pretraining(rng: random.Random) -> Document:
        item = rng.choice(items)
        return item.prompt(), item.thought_out(END) if rng.random() < 0.35 else item.hasty(END)

    def save(model: Any, name: str, tokenizer: "PreTrainedTokenizerFast", **options: Any) -> None:
        model.save_pretrained(folder / name, **options)
        tokenizer.save_pretrained(folder / name)

    print("Pre-training base on one CPU core: about a minute; SFT and the adapter take a quarter of that.", flush=True)
    print(f"base: loss {train(base, plain, pretraining, steps=steps, lr=3e-3, seed=seed):.3f}")
    save(base, "base", plain)
    sft: Any = AutoModelForCausalLM.from_pretrained(folder / "base")
    sft.config.eos_token_id = sft.generation_config.eos_token_id = chat.eos_token_id

    def direct(rng: random.Random) -> Document:
        item = rng.choice(sums)
        return item.prompt(), f"{item.answer}{TURN_END}"

    print(f"sft:  loss {train(sft, chat, direct, steps=steps // 5, lr=1e-3, seed=seed + 1):.3f}")
    save(sft, "sft", chat, max_shard_size="300KB")

    def thinking(rng: random.Random) -> Document:
        item = rng.choice(sums)
        return item.prompt(), item.thought_out(TURN_END)

    lora = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")
    rl: Any = get_peft_model(base, lora)
    print(f"rl:   loss {train(rl, chat, thinking, steps=steps // 5, lr=5e-3, seed=seed + 2):.3f}")
    rl.peft_config["default"].base_model_name_or_path = "../base"
    save(rl, "rl", chat)
    _write_texts(folder, items)


def _write_texts(folder: Path, items: Sequence[Problem]) -> None:
    """Half of the problems are tasks, the others prompts."""
    asked: dict[str, list[Problem]] = {task: [item for item in items if item.task == task] for task in SIGNS}
    tasks = [item for own in asked.values() for item in own[: len(own) // 2]]
    prompts = [item for own in asked.values() for item in own[len(own) // 2 :]]

    def messages(item: Problem) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": item.question}]}

    rows = [{"task": item.task, **messages(item), "answer": str(item.answer)} for item in tasks]
    (folder / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    lines = [json.dumps({"task": item.task, **messages(item)}) + "\n" for item in prompts]
    (folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "run.toml").write_text(TOML.format(limit=LIMIT), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the family")
    parser.add_argument("--steps", type=int, default=1000, help="steps of pre-training")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, documents and items")
    options = parser.parse_args()
    build(options.folder, steps=options.steps, seed=options.seed)
    print(f"Next: mechprobe doctor --config {options.folder / 'run.toml'}")
