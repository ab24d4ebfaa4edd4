"""Out of memory at every place that runs a model: parts of half the size, the same bytes, and one line."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from mechprobe import memory
from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.splicing import TokenizedSample, spliced_losses
from mechprobe.errors import OutOfMemoryError
from mechprobe.evals.answering import log_likelihoods
from mechprobe.memory import even_ranges, in_parts
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate
from mechprobe.models.head import ModelHead
from mechprobe.models.load import LanguageModel
from mechprobe.models.residuals import residuals_plain
from mechprobe.progress import forget_told
from mechprobe.selection.config import SelectConfig
from mechprobe.selection.rankings.ig import integrated_gradients
from mechprobe.selection.rankings.indirect_effects import indirect_effects
from mechprobe.selection.rankings.pooled import score_features
from mechprobe.types import Site
from tests.small_dictionaries import make_crosscoder

SITE = Site(1)
N = 16


@pytest.fixture(autouse=True)
def new_command() -> Iterator[None]:
    forget_told()
    memory.forget_limits()
    yield
    memory.forget_limits()


@given(st.integers(0, 300), st.integers(1, 80))
def test_ranges_cover_all_rows_and_none_is_small(n: int, most: int) -> None:
    ranges = list(even_ranges(n, most))
    assert [row for part in ranges for row in range(part.start, part.stop)] == list(range(n))
    sizes = [part.stop - part.start for part in ranges]
    assert all(size <= most for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 1


def limited(most: int, tried: list[int]) -> Callable[[slice], list[int]]:
    def work(part: slice) -> list[int]:
        tried.append(part.stop - part.start)
        if tried[-1] > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return list(range(part.start, part.stop))

    return work


def test_parts_halve_and_stay_small(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[int] = []
    found = in_parts(limited(20, tried), 64, what="Work", unit="rows")
    assert [row for part in found for row in part] == list(range(64))
    assert tried == [64, 32, 16, 16, 16, 16]
    in_parts(limited(20, tried), 40, what="Work", unit="rows")
    assert tried[6:] == [14, 13, 13]
    in_parts(limited(20, tried), 40, what="Other work", most=18, unit="rows")
    assert tried[9:] == [14, 13, 13]
    assert [record.getMessage() for record in caplog.records] == [
        "Work: memory ran out, so 16 rows are taken at a time; results stay the same."
    ]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError(), RuntimeError("std::bad_alloc")]
)
def test_a_row_that_does_not_fit_is_one_sentence(error: Exception) -> None:
    def work(_part: slice) -> None:
        raise error

    with pytest.raises(OutOfMemoryError, match="one of the rows alone does not fit") as caught:
        in_parts(work, 5, what="Work", unit="rows")
    assert "\n" not in str(caught.value)


def test_other_errors_are_not_retried() -> None:
    tried: list[int] = []

    def work(part: slice) -> None:
        tried.append(part.stop)
        raise RuntimeError("size mismatch")

    with pytest.raises(RuntimeError, match="size mismatch"):
        in_parts(work, 8, what="Work")
    assert tried == [8]


def samples() -> list[TokenizedSample]:
    draw = np.random.default_rng(0)
    rows = []
    for length in draw.integers(6, 12, N):
        ids = (1, *draw.integers(4, 90, length - 1).tolist())
        rows.append(TokenizedSample(ids, (False, *[True] * (length - 1)), (*[False] * 3, *[True] * (length - 3))))
    return rows


@pytest.fixture(scope="module")
def family(llama_family: dict[str, Path]) -> ModelFamily:
    return ModelFamily.load(llama_family)


def dictionary() -> Any:
    return make_crosscoder(d_model=32, d_sae=24)


def padded_ids() -> tuple[torch.Tensor, torch.Tensor]:
    from mechprobe.cache.harvest.forward_batches import padded

    return padded([sample.ids for sample in samples()], 0)


def of_splicing(family: ModelFamily) -> Any:
    return spliced_losses(dictionary(), family, SITE, samples())


def of_effects(family: ModelFamily) -> Any:
    models = {model.name: model.hf for model in family}
    found = indirect_effects(dictionary(), models, SITE, samples(), steps=2)
    return found.by_group.tobytes(), found.metric.tolist(), found.emptied.tolist(), found.error_effect.tolist()


def of_gradients(family: ModelFamily) -> Any:
    models = {model.name: model.hf for model in family}
    found = integrated_gradients(
        dictionary(), models, SITE, samples(), base="base", tuned="rl", readout=Readout("swap"), steps=2
    )
    return found.effect.tobytes(), found.metric.tolist(), found.without.tolist()


def of_scores(family: ModelFamily) -> Any:
    config = SelectConfig(base="base", tuned="rl", ranking="joint")
    found, values = score_features(dictionary(), family, {"task": samples()}, site=SITE, config=config)
    assert values is not None
    arrays = (found.score, found.joint, found.mean_act, found.last_difference, values.tasks[0])
    return [array.tobytes() for array in arrays]


def prompts() -> list[tuple[int, ...]]:
    return [sample.ids for sample in samples()]


def of_greedy(family: ModelFamily) -> Any:
    return generate(family["rl"], family.tokenizer, prompts(), max_new_tokens=5)


def of_sampling(family: ModelFamily) -> Any:
    return generate(family["rl"], family.tokenizer, prompts(), max_new_tokens=5, temperature=1.0, seed=3)


def of_likelihoods(family: ModelFamily) -> Any:
    return log_likelihoods(family["rl"], [(ids, (5, 6, 7)) for ids in prompts()])


def of_residuals(family: ModelFamily) -> Any:
    found = residuals_plain(family["rl"], *padded_ids(), [Site(0), SITE])
    return [found[site].numpy().tobytes() for site in (Site(0), SITE)]


def of_drift(family: ModelFamily) -> Any:
    hidden, resid = ModelHead(family["rl"]).hidden(*padded_ids(), [SITE])
    return hidden.numpy().tobytes(), resid[SITE].numpy().tobytes()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, family: ModelFamily) -> Iterator[None]:
    """Forward calls of more than four rows run out of memory."""

    def refuse(_module: torch.nn.Module, args: Sequence[Any], given: dict[str, Any]) -> None:
        ids = given["input_ids"] if "input_ids" in given else args[0]
        if len(ids) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand a long report")

    handles = [model.hf.register_forward_pre_hook(refuse, with_kwargs=True) for model in family]
    yield
    for handle in handles:
        handle.remove()


WORK = (
    of_splicing,
    of_effects,
    of_gradients,
    of_scores,
    of_greedy,
    of_sampling,
    of_likelihoods,
    of_residuals,
    of_drift,
)


@pytest.mark.parametrize("work", WORK)
def test_the_bytes_stay_and_one_line_says_it(
    work: Callable[[ModelFamily], Any],
    family: ModelFamily,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    expected = work(family)
    assert not caplog.records
    request.getfixturevalue("small")
    with caplog.at_level(logging.WARNING):
        assert work(family) == expected
    [line] = [record.getMessage() for record in caplog.records]
    assert "memory ran out, so 4 " in line


def test_batch_size_changes_no_bit(family: ModelFamily) -> None:
    crosscoder, models = dictionary(), {model.name: model.hf for model in family}
    losses = [spliced_losses(crosscoder, family, SITE, samples(), batch_size=size) for size in (4, 32)]
    assert losses[0] == losses[1]
    effects = [
        indirect_effects(crosscoder, models, SITE, samples(), steps=2, batch_size=size).by_group for size in (4, 32)
    ]
    assert np.array_equal(*effects)


def test_one_model_is_in_memory_at_a_time(llama_family: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    family = ModelFamily.load(llama_family)
    loaded: list[int] = []
    load = LanguageModel._load

    def counted(self: LanguageModel, attention: str = "eager") -> Any:
        loaded.append(sum("hf" in model.__dict__ for model in family))
        return load(self, attention)

    monkeypatch.setattr(LanguageModel, "_load", counted)
    spliced_losses(dictionary(), family, SITE, samples())
    assert loaded == [0] * 5, "three clean passes and two more; the last model stays for its second pass"
    assert not any("hf" in model.__dict__ for model in family)
    _ = family["base"].hf
    loaded.clear()
    spliced_losses(dictionary(), family, SITE, samples())
    assert "hf" in family["base"].__dict__, "a model that was loaded before stays loaded"


def test_samples_without_a_kept_token_are_taken(family: ModelFamily) -> None:
    rows = samples()
    rows[3] = replace(rows[3], kept=(False,) * len(rows[3].ids))
    small, large = (spliced_losses(dictionary(), family, SITE, rows, batch_size=size) for size in (2, 32))
    assert small["rl"].n_predictions == large["rl"].n_predictions
    assert small["rl"].ce_spliced == pytest.approx(large["rl"].ce_spliced, rel=1e-6)
