"""The global random generators, for code that draws from them: seeded for a block, and put back."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def isolated_random_state(
    seed: int, *, python_seed: int | None = None, device: torch.device | str = "cpu"
) -> Iterator[None]:
    """Seed Python's, NumPy's and torch's global generators, and give the caller's states back afterwards.

    Args:
        seed: Of all three.
        python_seed: Of Python's, where it is another.
        device: A GPU whose generator is put back too.
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
