"""Shuffled batches: every row once per epoch, positions that can be saved, and the held-out split."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st

from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.errors import StoreError
from mechprobe.models.family import ModelFamily

SITE = "resid_post.1"


@given(
    batch_size=st.integers(1, 300),
    block_rows=st.integers(1, 120),
    pool_rows=st.integers(1, 700),
    seed=st.integers(0, 3),
    split=st.sampled_from(["train", "held_out", "all"]),
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_epoch_serves_every_row_exactly_once(
    small_store: ActivationStore, batch_size: int, block_rows: int, pool_rows: int, seed: int, split: str
) -> None:
    options = {"site": SITE, "split": split, "block_rows": block_rows, "pool_rows": pool_rows}
    batches = small_store.batches(batch_size, seed, epochs=2, **options)
    served = list(batches)
    mask = torch.from_numpy(small_store.in_split(split))
    expected = small_store.rows(0, small_store.n_rows, SITE)[mask]
    assert all(len(batch) == batch_size for batch in served[:-1])
    rows = torch.cat(served)
    assert len(rows) == 2 * len(expected) == 2 * batches.n_rows

    def in_order(x: torch.Tensor) -> torch.Tensor:
        flat = x.flatten(1).numpy()
        return torch.from_numpy(flat[np.lexsort(flat.T[::-1])])

    for epoch in range(2):
        assert torch.equal(in_order(rows[epoch * len(expected) :][: len(expected)]), in_order(expected))


@given(cut=st.integers(0, 40), batch_size=st.integers(1, 90), pool_rows=st.integers(1, 400))
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_saved_position_continues_with_the_same_batches(
    small_store: ActivationStore, cut: int, batch_size: int, pool_rows: int
) -> None:
    options = {"site": SITE, "epochs": None, "block_rows": 32, "pool_rows": pool_rows}
    first = small_store.batches(batch_size, 1, **options)
    stream = iter(first)
    for _ in range(cut):
        next(stream)
    state = json.loads(json.dumps(first.state_dict()))
    second = small_store.batches(batch_size, 1, **options)
    second.load_state_dict(state)
    for _, (one, other) in zip(range(4), zip(stream, second, strict=False), strict=False):
        assert torch.equal(one, other)


def test_positions_of_other_settings_are_refused(small_store: ActivationStore) -> None:
    state = small_store.batches(10, 1, site=SITE).state_dict()
    with pytest.raises(StoreError, match=r"seed = 1.*2"):
        small_store.batches(10, 2, site=SITE).load_state_dict(state)
    with pytest.raises(StoreError, match="models"):
        ActivationStore.open(small_store.folder, models=["rl"]).batches(10, 1, site=SITE).load_state_dict(state)


def test_seeds_and_epochs_shuffle_differently(small_store: ActivationStore) -> None:
    def order(seed: int) -> torch.Tensor:
        return torch.cat(list(small_store.batches(100, seed, site=SITE, epochs=2)))

    one = order(1)
    half = len(one) // 2
    assert torch.equal(one, order(1))
    assert not torch.equal(one, order(2))
    assert not torch.equal(one[:half], one[half:])


def test_every_refill_brings_new_rows(llama_family: dict[str, Path], tmp_path: Path) -> None:
    """Regression test of a published bug: refills of the buffer added no rows, so training saw the same rows again."""
    prompts = [f"{letter} and the rest" for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    store = cache_activations(ModelFamily.load({"base": llama_family["base"]}), prompts, [SITE], tmp_path / "c")
    batches = store.batches(50, 0, site=SITE, epochs=1, pool_rows=100, block_rows=10)
    seen: set[bytes] = set()
    for batch in batches:
        new = {row.numpy().tobytes() for row in batch}
        assert len(new) == len(batch)
        assert not new & seen
        seen |= new
    assert len(seen) == int(store.in_split("train").sum())


def test_a_held_out_prompt_is_never_trained_on(small_store: ActivationStore) -> None:
    held_out = {small_store.sequence(sample).prompt_id for sample in small_store.held_out_samples()}
    training = {
        small_store.sequence(sample).prompt_id
        for sample in np.unique(small_store.tokens.sample[small_store.in_split("train")]).tolist()
    }
    assert len(held_out) == 12
    assert not held_out & training
