"""Supervised fine-tuning with TRL. The loss is the mean cross entropy over the response tokens of the whole step.

TRL divides the sum of a micro-batch by the number of response tokens in the step, over all micro-batches and processes, so
neither their size nor their number changes the gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mechprobe.posttrain.config import SftConfig
from mechprobe.posttrain.examples import Row
from mechprobe.posttrain.training import Frozen, Place, Watch, arguments, require_trl, run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_IGNORED = -100


def train_sft(
    load: Callable[[], Any],
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    config: SftConfig,
    *,
    n_steps: int,
    order: Sequence[int] | None,
    seed: int,
    watch: Watch,
    place: Place | None = None,
    frozen: Frozen = lambda _name: False,
    user: str = "Post-training",
) -> Any:
    """Fine-tune a model on responses.

    Args:
        load: Loads the model.
        tokenizer: Its tokenizer.
        rows: Sequences of token ids.
        config: Settings.
        n_steps: Number of optimizer steps.
        order: Index of the row of every visit, ``n_steps * prompts_per_step`` in all; None lets TRL shuffle by the seed.
        seed: Seed.
        watch: What is called while it trains.
        place: Where it trains.
        frozen: Which parameters stay fixed.
        user: The work, for the message if TRL is missing.

    Raises:
        DependencyError: TRL is not installed.
        ConfigError: Micro-batches and processes do not divide a step.
    """
    trl, datasets = require_trl(user)
    place = place or Place()
    shared = arguments(config, n_steps, config.prompts_per_step, place=place, seed=seed)
    data = [
        {
            "input_ids": [*row.prompt_ids, *row.response_ids],
            "labels": [*[_IGNORED] * len(row.prompt_ids), *row.response_ids],
        }
        for row in rows
    ]

    class Trainer(trl.SFTTrainer):
        def _get_train_sampler(self, *given: Any) -> Any:
            return super()._get_train_sampler(*given) if order is None else Visits(order)

    def make(folder: str, model: Any) -> Any:
        args = trl.SFTConfig(output_dir=folder, **shared, max_length=None)
        set_ = datasets.Dataset.from_list(data)
        return Trainer(model, args, train_dataset=set_, processing_class=tokenizer, callbacks=[watch.callback()])

    return run(load, make, seed=seed, place=place, frozen=frozen)


class Visits:
    """A sampler that visits rows in a given order."""

    def __init__(self, order: Sequence[int]) -> None:
        self._order = order

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)
