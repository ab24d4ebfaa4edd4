"""GRPO with TRL: several responses to each prompt, a verifiable reward, and the reward's deviation from its prompt's mean.

The advantage of response i to a prompt is (r_i − mean r) / (std r + 1e-4), with the sample standard deviation over the responses
to that prompt. The loss is −Σ A_i ρ / N over the N response tokens of the step (DAPO's mean), where ρ = π / π.detach is 1
and carries the gradient, because every step trains on responses of the present model. TRL computes both.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mechprobe.posttrain.config import GrpoConfig
from mechprobe.posttrain.supervised import Visits
from mechprobe.posttrain.training import Session, arguments, require_trl, run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def train_grpo(
    load: Callable[[], Any],
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[Sequence[int]],
    rewards: Callable[..., list[float]],
    config: GrpoConfig,
    session: Session,
) -> Any:
    """Train a model with GRPO.

    Args:
        load: Loads the model.
        tokenizer: Its tokenizer.
        prompts: Token ids of every prompt.
        rewards: The reward function, see `mechprobe.posttrain.reward.Rewards`.
        config: Settings.
        session: The training.

    Raises:
        DependencyError: TRL is not installed.
        ConfigError: Micro-batches and processes do not divide a step.
    """
    trl, datasets = require_trl(session.user)
    shared = arguments(config, session)
    order, encoded = session.order, prompts

    class Trainer(trl.GRPOTrainer):
        def _get_train_sampler(self, *given: Any) -> Any:
            if order is None:
                return super()._get_train_sampler(*given)
            return Visits(_repeated(order, config, self.args.steps_per_generation))

        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [list(encoded[int(name)]) for name in prompts], None, {}

    rows = [{"prompt": str(index), "index": index} for index in range(len(prompts))]

    def make(folder: str, model: Any) -> Any:
        args = trl.GRPOConfig(
            output_dir=folder,
            **shared,
            num_generations=config.n_generations,
            max_completion_length=config.max_new_tokens,
            temperature=config.temperature,
            beta=config.beta,
            scale_rewards="group" if config.scale_rewards else "none",
            loss_type="dapo",
        )
        data = datasets.Dataset.from_list(rows)
        callbacks = [session.watch.callback()]
        return Trainer(model, rewards, args=args, train_dataset=data, processing_class=tokenizer, callbacks=callbacks)

    return run(session, load, make)


def _repeated(order: Sequence[int], config: GrpoConfig, repeats: int) -> list[int]:
    """The visits as TRL reads them: each prompt once per response, and each step once per micro-batch, which TRL then slices."""
    size = config.prompts_per_step
    steps = [order[start : start + size] for start in range(0, len(order), size)]
    return [index for step in steps for _ in range(repeats) for index in step for _ in range(config.n_generations)]
