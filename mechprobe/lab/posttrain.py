"""The post-trainings of a lab: calls of `mechprobe.posttrain` with the settings of a recipe.

Every arm starts from the same base and sees the same prompts of one skill. The recipe says which weights stay fixed: embeddings,
final norm and unembedding, or more, or none.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.skills import SkillItem
from mechprobe.evals.skills.item import ANSWER_MARKER
from mechprobe.lab.recipe import GrpoConfig, SftConfig
from mechprobe.lab.weights import Frozen, frozen_equal, is_head, load_model
from mechprobe.posttrain import config as room
from mechprobe.posttrain.examples import Row
from mechprobe.posttrain.reinforcement import train_grpo as run_grpo
from mechprobe.posttrain.reward import Rewards
from mechprobe.posttrain.supervised import train_sft as run_sft
from mechprobe.posttrain.training import Session
from mechprobe.posttrain.watch import Watch

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_USER = "Building a lab"


def n_steps(config: GrpoConfig | SftConfig, n_items: int) -> int:
    """Number of optimizer steps of a post-training."""
    return config.steps if isinstance(config, GrpoConfig) else config.epochs * -(-n_items // config.batch_size)


def train_sft(
    base: Path,
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[SkillItem],
    config: SftConfig,
    *,
    seed: int,
    watch: Watch,
    frozen: Frozen = is_head,
) -> "LlamaForCausalLM":
    """Fine-tune the base on the traces of the items, with loss on completion tokens only and a cosine schedule.

    Raises:
        DependencyError: TRL is not installed.
    """
    settings = room.SftConfig(prompts_per_step=config.batch_size, lr=config.lr, schedule="cosine", warmup=0)
    prompts = tokenizer([item.prompt for item in items]).input_ids
    traces = tokenizer([item.trace for item in items], add_special_tokens=False).input_ids
    end = int(str(tokenizer.eos_token_id))
    rows = [Row(tuple(p), (*t, end)) for p, t in zip(prompts, traces, strict=True)]
    session = Session(n_steps(config, len(items)), None, seed, watch, frozen=frozen, user=_USER)
    return _checked(base, run_sft(_load(base), tokenizer, rows, settings, session), frozen)


def train_grpo(
    base: Path,
    tokenizer: "PreTrainedTokenizerFast",
    items: Sequence[SkillItem],
    config: GrpoConfig,
    *,
    seed: int,
    watch: Watch,
    frozen: Frozen = is_head,
) -> "LlamaForCausalLM":
    """Train the base with GRPO (DAPO loss, no KL term); the reward is 1 for an exact match and 0 otherwise.

    Raises:
        DependencyError: TRL is not installed.
    """
    settings = room.GrpoConfig(
        prompts_per_step=config.n_prompts,
        n_generations=config.n_generations,
        lr=config.lr,
        schedule="constant",
        warmup=config.warmup_steps,
        max_new_tokens=config.max_new_tokens,
        score_cut=True,
    )
    rewards = Rewards(scorer(f"final:{ANSWER_MARKER}"), [item.answer for item in items], score_cut=True)
    prompts = tokenizer([item.prompt for item in items]).input_ids
    session = Session(config.steps, None, seed, watch, frozen=frozen, user=_USER)
    return _checked(base, run_grpo(_load(base), tokenizer, prompts, rewards, settings, session), frozen)


def _load(base: Path) -> Any:
    return partial(load_model, base)


def _checked(base: Path, model: "LlamaForCausalLM", frozen: Frozen) -> "LlamaForCausalLM":
    assert frozen_equal(model, load_model(base), frozen), "post-training changed frozen parameters"
    return model
