"""The order in which prompts are visited: a function of the file and of two settings alone, and so the same for every arm."""

import math

import numpy as np

from mechprobe.files import dump_json, sha256_bytes
from mechprobe.posttrain.config import PosttrainConfig


def visits(n_prompts: int, n_visits: int, config: PosttrainConfig) -> list[int]:
    """Index of the prompt of every visit. Step s takes visits ``s * prompts_per_step`` and following.

    Passes follow each other without a gap. A pass is the order of the file, or with ``shuffle`` a permutation that depends on
    ``order_seed`` and the number of the pass.

    Example:
        >>> visits(3, 7, PosttrainConfig())
        [0, 1, 2, 0, 1, 2, 0]
    """
    found: list[int] = []
    for number in range(math.ceil(n_visits / n_prompts)):
        found += _pass(n_prompts, number, config)
    return found[:n_visits]


def _pass(n_prompts: int, number: int, config: PosttrainConfig) -> list[int]:
    if not config.shuffle:
        return list(range(n_prompts))
    return np.random.default_rng([config.order_seed, number]).permutation(n_prompts).tolist()


def order_hash(ids: list[str], config: PosttrainConfig) -> str:
    """sha256 of the first two passes by id. Arms with equal hashes and prompts visit the same prompts in the same order."""
    order = [ids[index] for index in visits(len(ids), 2 * len(ids), config)]
    return sha256_bytes(dump_json([order, config.order_seed if config.shuffle else None]).encode())
