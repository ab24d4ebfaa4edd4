"""Profile of our training step. The time of the encoder's product is a lower bound for any step that encodes every feature."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.contestants import N_MODELS, Setting, our_trainer
from benchmarks.timing import Clock
from sae_training import Trainer
from sae_training.selection import Selector

ENCODE, SELECT, SORT = "encode", "selection", "sort by feature"
REST = "rest"
PARTS = (
    "scale and center",
    ENCODE,
    SELECT,
    "decode",
    "gradient of the values",
    SORT,
    "gradient of the decoder",
    "gradient of the encoder",
    "gradient norm and clipping",
    "optimizer",
    "biases",
    "counters",
    REST,
)
"""Parts in the order of a step; ``rest`` is the time outside all other parts."""

Seconds = dict[str, float]


def profile_step(setting: Setting, batches: list[Tensor], repeats: int, kernel: str = "auto") -> dict[str, Any]:
    """Seconds of every part of the step with the median time among ``repeats``; timing costs microseconds per part."""
    clock = Clock(setting.device)
    trainer = our_trainer(setting, kernel)
    active_class = type(trainer.step(batches[0]).active)
    steps: list[Seconds] = []
    with _timed_parts(trainer, active_class, clock) as seconds:
        for number in range(repeats + 1):  # the first is a warm-up
            seconds.clear()
            start = clock.now()
            trainer.step(batches[number % len(batches)])
            total = clock.now() - start
            steps.append({**seconds, REST: total - sum(seconds.values()), "step": total})
    median = sorted(steps[1:], key=lambda step: step["step"])[repeats // 2]
    parts = {name: median.get(name, 0.0) for name in PARTS}
    step, floor = median["step"], encode_product_seconds(setting, repeats)
    return {
        "kernel": active_class.__name__,
        "step_s": step,
        "parts_s": parts,
        "encode_product_s": floor,
        "encode_product_share": floor / step,
        "encode_product_flop_per_s": 2 * setting.batch_size * N_MODELS * setting.d_model * setting.d_sae / floor,
        "bound": bound(parts, step, floor),
    }


def bound(parts: Seconds, step: float, floor: float) -> str:
    """Describe in one sentence what bounds the step."""
    first, second, *_ = sorted(parts, key=lambda name: -parts[name])
    return (
        f"The largest parts are {first} ({parts[first] / step:.0%} of the step) and {second} "
        f"({parts[second] / step:.0%}); the encoder's product alone is {floor / step:.0%}, so no step that encodes "
        f"every feature can be more than {step / floor:.1f} times as fast as this one."
    )


def encode_product_seconds(setting: Setting, repeats: int) -> float:
    """Median wall seconds of ``[batch d_all] @ [d_all d_sae]`` into allocated memory, in the precision of the step."""
    d_all = N_MODELS * setting.d_model
    dtype = getattr(torch, setting.precision)
    x = torch.randn(setting.batch_size, d_all, device=setting.device).to(dtype)
    weight = torch.randn(setting.d_sae, d_all, device=setting.device).to(dtype)
    out = torch.empty(setting.batch_size, setting.d_sae, dtype=dtype, device=setting.device)
    clock, seconds = Clock(setting.device), []
    for _ in range(repeats + 2):
        start = clock.now()
        torch.mm(x, weight.T, out=out)
        seconds.append(clock.now() - start)
    return statistics.median(seconds[2:])


@contextmanager
def _timed_parts(trainer: Trainer, active_class: type, clock: Clock) -> Iterator[Seconds]:
    """Yield the seconds of each part, which fill while the block runs; the patched classes are restored after it."""
    seconds: Seconds = defaultdict(float)
    n_weight_gradients = 0

    def timed(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = clock.now()
            result = work(*args, **kwargs)
            seconds[name] += clock.now() - start
            return result

        return call

    def weight_gradient(active: Any, values: Any, inputs: Tensor) -> Tensor:
        """The first call of a step is the decoder's, the second the encoder's; their shared sort is timed separately."""
        nonlocal n_weight_gradients
        timed(SORT, lambda: getattr(active, "by_column", None))()
        name = "gradient of the encoder" if n_weight_gradients % 2 else "gradient of the decoder"
        n_weight_gradients += 1
        return timed(name, original)(active, values, inputs)

    original = active_class.weight_gradient
    optimizer = trainer.state.optimizer
    places: list[tuple[Any, str, str]] = [
        (Trainer, "_centered", "scale and center"),
        (Trainer, "_write_biases", "biases"),
        (Trainer, "_count", "counters"),
        (Selector, "scores", ENCODE),
        (Selector, "select", SELECT),
        (active_class, "decode", "decode"),
        (active_class, "values_gradient", "gradient of the values"),
        (torch.nn.utils, "get_total_norm", "gradient norm and clipping"),
        (torch.nn.utils, "clip_grads_with_norm_", "gradient norm and clipping"),
        (optimizer, "step", "optimizer"),
    ]
    with ExitStack() as stack:
        for owner, attribute, name in places:
            stack.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        stack.enter_context(patch.object(active_class, "weight_gradient", weight_gradient))
        yield seconds
