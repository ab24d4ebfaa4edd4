"""Post-training with TRL: supervised fine-tuning on traces, and GRPO with an exact-match reward.

Every arm starts from the same base and sees the same prompts of one skill. The recipe says which weights stay fixed: embeddings,
final norm and unembedding, or more, or none. TRL writes to a temporary folder; `Watch.keep` receives the checkpoints.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mechprobe.errors import DependencyError
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.skills import SkillItem
from mechprobe.evals.skills.item import ANSWER_MARKER
from mechprobe.lab.recipe import GrpoConfig, SftConfig
from mechprobe.lab.tokenizer import CONTEXT
from mechprobe.lab.weights import Frozen, frozen_equal, is_head, load_model, quiet_transformers
from mechprobe.random_state import isolated_random_state

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

Keep = Callable[["LlamaForCausalLM", int], object]
_KEPT_LOGS = ("loss", "learning_rate", "entropy", "reward", "kl", "mean_token_accuracy", "completions/mean_length")


@dataclass
class Watch:
    """Functions that a trainer calls while it runs, and its log.

    Attributes:
        checkpoints: Steps at which ``keep`` is called.
        keep: Function that receives the model and the step.
        on_step: Function that is called after every step.
        curve: Log of the trainer, one entry per logged step.
    """

    checkpoints: Sequence[int] = ()
    keep: Keep = lambda _model, _step: None
    on_step: Callable[[], object] = lambda: None
    curve: list[dict[str, float | int]] = field(default_factory=list)

    def callback(self) -> Any:
        """Create the callback for a transformers Trainer."""
        from transformers import TrainerCallback

        watch = self

        class _Callback(TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
                watch.on_step()
                if state.global_step in watch.checkpoints:
                    watch.keep(kwargs["model"], state.global_step)

            def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
                logs = kwargs.get("logs") or {}
                row = {name: float(logs[name]) for name in _KEPT_LOGS if name in logs}
                if "loss" in row:
                    watch.curve.append({"step": state.global_step, **row})

        return _Callback()


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
    trl, datasets = _trl()
    rows = [{"prompt": item.prompt, "completion": item.trace} for item in items]

    def make(folder: str, model: "LlamaForCausalLM") -> Any:
        args = trl.SFTConfig(
            **_shared_arguments(folder, seed),
            learning_rate=config.lr,
            lr_scheduler_type="cosine",
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            completion_only_loss=True,
            max_length=CONTEXT,
            eos_token=tokenizer.eos_token,
        )
        data = datasets.Dataset.from_list(rows)
        return trl.SFTTrainer(model, args, train_dataset=data, processing_class=tokenizer, callbacks=[watch.callback()])

    return _run(base, make, seed, frozen)


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
    trl, datasets = _trl()
    rows = [{"prompt": item.prompt, "answer": item.answer} for item in items]
    judge = scorer(f"final:{ANSWER_MARKER}")

    def exact_match(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        pairs = zip(completions, answer, strict=True)
        return [float(judge.score(text, right) == "right") for text, right in pairs]

    def make(folder: str, model: "LlamaForCausalLM") -> Any:
        args = trl.GRPOConfig(
            **_shared_arguments(folder, seed),
            learning_rate=config.lr,
            lr_scheduler_type="constant_with_warmup",
            warmup_steps=config.warmup_steps,
            max_steps=config.steps,
            per_device_train_batch_size=config.n_prompts * config.n_generations,
            num_generations=config.n_generations,
            max_completion_length=config.max_new_tokens,
            temperature=1.0,
            beta=0.0,
            loss_type="dapo",
        )
        data = datasets.Dataset.from_list(rows)
        return trl.GRPOTrainer(
            model, exact_match, args=args, train_dataset=data, processing_class=tokenizer, callbacks=[watch.callback()]
        )

    return _run(base, make, seed, frozen)


def _shared_arguments(folder: str, seed: int) -> dict[str, Any]:
    """Arguments of both trainers: CPU, float32, no saved files and no reports."""
    return {
        "output_dir": folder,
        "seed": seed,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_grad_norm": 1.0,
        "weight_decay": 0.0,
        "save_strategy": "no",
        "report_to": [],
        "logging_steps": 1,
        "disable_tqdm": True,
    }


def _run(base: Path, make: "Callable[[str, LlamaForCausalLM], Any]", seed: int, frozen: Frozen) -> "LlamaForCausalLM":
    """Load the base, freeze its fixed parts, train, and check that they are unchanged."""
    from transformers import PrinterCallback

    with tempfile.TemporaryDirectory() as folder, isolated_random_state(seed), quiet_transformers():
        model = load_model(base)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not frozen(name))
        trainer = make(folder, model)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    assert frozen_equal(model, load_model(base), frozen), "post-training changed frozen parameters"
    return model.eval()


def _trl() -> tuple[Any, Any]:
    """Import TRL and datasets; raise `DependencyError` if they are not installed."""
    try:
        import datasets
        import trl
    except ImportError:
        raise DependencyError(
            "Building a lab requires TRL, which is not installed; run `pip install 'mechprobe[posttrain]'`."
        ) from None
    return trl, datasets
