"""Work that overlaps: shards are written while models run, and batches are made while training uses others; in bounded memory."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mechprobe.cache.config import CacheConfig, StoreDtype
from mechprobe.cache.harvest import collect, forward_batches
from mechprobe.cache.stage import cache_activations
from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.background import Background
from mechprobe.cache.store.batches import FillRows, ServingSession
from mechprobe.errors import StoreError
from mechprobe.models.family import ModelFamily

SITE = "resid_post.1"
PROMPTS = [f"Prompt {index}: {'abcdefgh'[: index % 8]}" for index in range(40)]
CONFIG = CacheConfig(sites=(SITE,), shard_rows=120, batch_tokens=32, held_out_frac=0.2, reader="plain")
PATIENCE = 60.0


def test_background_work_keeps_its_order_and_its_bound() -> None:
    started, release, done = threading.Event(), threading.Event(), []

    def wait_first(number: int) -> None:
        if number == 0:
            started.set()
            assert release.wait(PATIENCE)
        done.append(number)

    with Background("test", ahead=2) as work:
        work.submit(wait_first, 0)
        work.submit(wait_first, 1)
        assert started.wait(PATIENCE)
        assert done == []
        threading.Timer(0.05, release.set).start()
        work.submit(wait_first, 2)  # waits for the first piece
        assert done[0] == 0
    assert done == [0, 1, 2]


def test_an_error_in_the_background_is_raised_and_waiting_work_ends() -> None:
    done: list[int] = []

    def fail() -> None:
        raise StoreError("The disk is full at x; make space.")

    def run(ahead: int, *pieces: Callable[[], object]) -> None:
        with Background("test", ahead=ahead) as work:
            for piece in pieces:
                work.submit(piece)
            raise KeyboardInterrupt

    with pytest.raises(StoreError, match="disk is full"):
        run(1, fail, lambda: done.append(1))
    with pytest.raises(KeyboardInterrupt):
        run(2, lambda: time.sleep(0.05), lambda: done.append(2))
    assert done == [2], "what began is kept, what follows an error does not begin"


def test_a_shard_is_written_while_the_models_make_the_next(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, h5_hashes: Callable
) -> None:
    paths = {name: llama_family[name] for name in ("base", "rl")}
    expected = cache_activations(ModelFamily.load(paths), PROMPTS, out=tmp_path / "plain", config=CONFIG)
    n_collected, n_written, most = 0, 0, 0
    second = threading.Event()
    make, write = collect.collect_shard, collect.write_shard

    def counting(*args: Any, **options: Any) -> Any:
        nonlocal n_collected, most
        n_collected += 1
        most = max(most, n_collected - n_written)
        if n_collected == 2:
            second.set()
        return make(*args, **options)

    def after_the_next(*args: Any, **options: Any) -> Any:
        nonlocal n_written
        assert second.wait(PATIENCE), "no other shard was begun while this one was written"
        found = write(*args, **options)
        n_written += 1
        return found

    monkeypatch.setattr(collect, "collect_shard", counting)
    monkeypatch.setattr(collect, "write_shard", after_the_next)
    store = cache_activations(ModelFamily.load(paths), PROMPTS, out=tmp_path / "slow", config=CONFIG)
    assert h5_hashes(store) == h5_hashes(expected)
    assert n_collected == n_written == 2 * len(store.stream.shards) > 4
    assert most == 2, "one shard is made and one is written at a time"


def test_rows_are_stored_while_the_next_batch_runs(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, h5_hashes: Callable
) -> None:
    expected = cache_activations(
        ModelFamily.load({"base": llama_family["base"]}), PROMPTS, out=tmp_path / "plain", config=CONFIG
    )
    second, storing, n_started = threading.Event(), threading.current_thread(), 0
    start = forward_batches.start_storing

    def begun(*args: Any) -> Callable[[], np.ndarray]:
        nonlocal n_started
        n_started += 1
        if n_started == 2:
            second.set()
        end = start(*args)

        def ended() -> np.ndarray:
            assert threading.current_thread() is not storing
            assert second.wait(PATIENCE)
            return end()

        return ended

    monkeypatch.setattr(forward_batches, "start_storing", begun)
    store = cache_activations(
        ModelFamily.load({"base": llama_family["base"]}), PROMPTS, out=tmp_path / "slow", config=CONFIG
    )
    assert h5_hashes(store) == h5_hashes(expected)


class OnCard(torch.Tensor):
    """A flag that says it is on a GPU, where reading it would make the host wait."""

    device = torch.device("cuda")  # pyright: ignore[reportAssignmentType]
    n_read = 0

    def __bool__(self) -> bool:
        raise AssertionError("the host waits for a batch")

    def tolist(self) -> list[bool]:
        OnCard.n_read += 1
        return self.as_subclass(torch.Tensor).tolist()


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
@pytest.mark.parametrize("on_card", [False, True], ids=["host", "card"])
def test_finiteness_is_read_once_a_shard_and_the_first_bad_sequence_is_named(
    on_card: bool, dtype: StoreDtype, llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = ModelFamily.load({"base": llama_family["base"]})
    sites = ("resid_post.0", SITE)
    config = CONFIG.model_copy(update={"sites": sites, "dtype": dtype})
    start, real = forward_batches.start_storing, forward_batches.residuals_plain
    monkeypatch.setattr(OnCard, "n_read", 0)

    def flagged(*args: Any) -> Callable[[], tuple[np.ndarray, torch.Tensor]]:
        end = start(*args)
        return lambda: (lambda rows, fit: (rows, fit.as_subclass(OnCard)))(*end())

    if on_card:
        monkeypatch.setattr(forward_batches, "start_storing", flagged)
    store = cache_activations(family, PROMPTS, out=tmp_path / "good", config=config)
    if on_card:
        assert OnCard.n_read == len(sites) * len(store.stream.shards) > 2
    shard = [store.sequence(index) for index in store.stream.shards[1].sequences]
    longest, shortest = (choose(shard, key=lambda sequence: len(sequence.ids)) for choose in (max, min))

    def broken(model: Any, ids: torch.Tensor, mask: torch.Tensor, wanted: Any) -> dict[Any, torch.Tensor]:
        resid = real(model, ids, mask, wanted)
        for bad in (longest, shortest):
            hit = (ids[:, : len(bad.ids)] == torch.tensor(bad.ids)).all(1) if ids.shape[1] >= len(bad.ids) else []
            for row in range(len(ids)):
                if len(hit) and hit[row]:
                    resid[wanted[1]][row, len(bad.ids) - 1] = float("nan")
        return resid

    monkeypatch.setattr(forward_batches, "residuals_plain", broken)
    monkeypatch.setattr(collect, "choose_reader", lambda *_: forward_batches.ModelReader("plain"))
    message = rf"Model base, resid_post\.1, sequence '{shortest.id}': .* not finite"
    with pytest.raises(StoreError, match=message):
        cache_activations(family, PROMPTS, out=tmp_path / "bad", config=config)
    assert len(list((tmp_path / "bad").rglob("shard_*.h5"))) == 1, "the shard before is kept"


def test_values_that_are_finite_when_they_are_computed_again_name_the_sequences_of_the_batch(
    llama_family: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, n_batches = forward_batches.residuals_plain, 0

    def once(*args: Any) -> dict[Any, torch.Tensor]:
        nonlocal n_batches
        n_batches += 1
        return {site: values * (float("nan") if n_batches == 1 else 1.0) for site, values in real(*args).items()}

    monkeypatch.setattr(forward_batches, "residuals_plain", once)
    monkeypatch.setattr(collect, "choose_reader", lambda *_: forward_batches.ModelReader("plain"))
    family = ModelFamily.load({"base": llama_family["base"]})
    with pytest.raises(StoreError, match=r"Model base, resid_post\.1: .*sequences '\d+'.* but not when"):
        cache_activations(family, PROMPTS, out=tmp_path / "bad", config=CONFIG)


class Watched(ActivationStore):
    """A store that says which windows are filled, and can hold or fail one."""

    filled: list[int]
    hold: Callable[[int], None]

    @contextmanager
    def window(self, session: ServingSession, first_block: int, shards: Any) -> Iterator[FillRows]:
        self.hold(first_block)
        self.filled.append(first_block)
        with super().window(session, first_block, shards) as fill:
            yield fill


@pytest.fixture
def watched(small_store: ActivationStore) -> Watched:
    store = Watched.open(small_store.folder)
    store.filled, store.hold = [], lambda _block: None
    return store


def test_the_next_window_is_filled_while_this_one_is_used(watched: Watched, small_store: ActivationStore) -> None:
    """Training and filling overlap, so a run takes as long as the slower of the two; no more than one window is ahead."""
    options = {"site": SITE, "block_rows": 32, "pool_rows": 100, "epochs": 3}
    expected = list(small_store.batches(15, 1, **options))
    second = threading.Event()
    watched.hold = lambda block: second.set() if block else None
    batches = iter(watched.batches(15, 1, **options))
    served = [next(batches)]
    assert second.wait(PATIENCE), "the second window is filled only after the first is used up"
    time.sleep(0.05)
    assert len(watched.filled) <= 2
    served += batches
    assert all(torch.equal(one, other) for one, other in zip(served, expected, strict=True))


def test_an_error_while_a_window_is_filled_ends_training_and_no_thread_stays(watched: Watched) -> None:
    def fail(block: int) -> None:
        if block:
            raise StoreError("A shard is damaged.")

    watched.hold, before = fail, set(threading.enumerate())
    batches = watched.batches(40, 1, site=SITE, block_rows=32, pool_rows=100)
    with pytest.raises(StoreError, match="damaged"):
        for _ in batches:
            pass
    assert 0 < batches.rows_served <= 150
    assert not set(threading.enumerate()) - before


def test_the_position_is_that_of_the_batches_given(watched: Watched) -> None:
    batches = watched.batches(40, 1, site=SITE, pool_rows=100)
    iterator = iter(batches)
    for number in range(1, 4):
        next(iterator)
        time.sleep(0.02)  # batches are made ahead meanwhile
        assert batches.state_dict()["rows_served"] == 40 * number
