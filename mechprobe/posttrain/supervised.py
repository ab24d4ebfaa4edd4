"""Supervised fine-tuning with TRL. The loss is the mean cross entropy over the response tokens of the whole step.

TRL divides the sum of a micro-batch by the number of response tokens in the step, over all micro-batches and processes, so
neither their size nor their number changes the gradient.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from mechprobe.posttrain.config import SftConfig
from mechprobe.posttrain.examples import Row
from mechprobe.posttrain.training import Session, arguments, require_trl, run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_IGNORED = -100


def train_sft(
    load: Callable[[], Any],
    tokenizer: "PreTrainedTokenizerBase",
    rows: Sequence[Row],
    config: SftConfig,
    session: Session,
) -> Any:
    """Fine-tune a model on responses.

    Args:
        load: Loads the model.
        tokenizer: Its tokenizer.
        rows: Sequences of token ids.
        config: Settings.
        session: The training.

    Raises:
        DependencyError: TRL is not installed.
        ConfigError: Micro-batches and processes do not divide a step.
    """
    trl, datasets = require_trl(session.user)
    shared = arguments(config, session)
    order = session.order
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
        return Trainer(
            model, args, train_dataset=set_, processing_class=tokenizer, callbacks=[session.watch.callback()]
        )

    return run(session, load, make)


class Visits:
    """A sampler that visits rows in a given order."""

    def __init__(self, order: Sequence[int]) -> None:
        self._order = order

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)

    def __len__(self) -> int:
        return len(self._order)
