"""Tokens that a training has read at each checkpoint.

Those of SFT follow from its rows and the order of visits, those of GRPO from its prompts and from what TRL counts while it
samples (``num_tokens``), which its states keep. So the numbers depend neither on micro-batches nor on processes nor on a resume.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate

from mechprobe.posttrain.examples import Row
from mechprobe.posttrain.result import TokensSeen


def supervised_tokens(
    rows: Sequence[Row], order: Sequence[int], per_step: int, steps: Iterable[int]
) -> tuple[TokensSeen, ...]:
    """Tokens of SFT at each of ``steps``.

    Args:
        rows: The sequences.
        order: Row of every visit.
        per_step: Visits of a step.
        steps: Numbers of finished steps.

    Example:
        >>> supervised_tokens([Row((1, 2), (3,)), Row((1,), (2, 3, 4))], [0, 1, 0, 1], 1, [3])
        (TokensSeen(step=3, n=10, n_loss=5),)
    """
    n = [0, *accumulate(len(rows[row].prompt_ids) + len(rows[row].response_ids) for row in order)]
    n_loss = [0, *accumulate(len(rows[row].response_ids) for row in order)]
    return tuple(TokensSeen(step=step, n=n[step * per_step], n_loss=n_loss[step * per_step]) for step in steps)


def sampled_tokens(
    prompts: Sequence[Sequence[int]],
    order: Sequence[int],
    per_step: int,
    n_generations: int,
    counted: Mapping[int, int],
    steps: Iterable[int],
) -> tuple[TokensSeen, ...]:
    """Tokens of GRPO at each of ``steps``.

    Args:
        prompts: Token ids of every prompt.
        order: Prompt of every visit.
        per_step: Visits of a step.
        n_generations: Responses of a visit, each of which is read with its prompt.
        counted: Step → tokens of prompts and responses so far, as TRL counts them.
        steps: Numbers of finished steps.

    Returns:
        Nothing where TRL did not count at one of the steps.
    """
    steps = tuple(steps)
    if not set(steps) <= set(counted):
        return ()
    read = [0, *accumulate(n_generations * len(prompts[prompt]) for prompt in order)]
    return tuple(TokensSeen(step=step, n=counted[step], n_loss=counted[step] - read[step * per_step]) for step in steps)
