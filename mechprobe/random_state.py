"""Isolation of code that draws from the global random generators."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated_random_state(
    seed: int, *, python_seed: int | None = None, device: torch.device | str = "cpu"
) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch inside a ``with`` block, and restore their states after it.

    ``python_seed`` is another seed for Python's generator. If ``device`` is a GPU, its generator is restored too.
    """
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        random.seed(seed if python_seed is None else python_seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
