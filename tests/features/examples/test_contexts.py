"""Contexts: their rows, texts and activations."""

import pytest
import torch

from mechprobe.dictionary.readout import Readout
from mechprobe.errors import SelectionError
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.examples.contexts import feature_examples, shown_features
from mechprobe.features.table.feature_table import feature_table
from sae_training import Crosscoder
from tests.small_dictionaries import MemoryStore

CONFIG = FeaturesConfig(batch_rows=64, n_examples=3, context_before=4, context_after=2)


class Letters:
    """A tokenizer with one letter per token."""

    def decode(self, ids: list[int], **_: object) -> str:
        return chr(ord("a") + ids[0])


def test_contexts_are_those_of_the_largest_activations(crosscoder: Crosscoder, store: MemoryStore) -> None:
    table = feature_table(crosscoder, store, CONFIG)
    [entry] = feature_examples(crosscoder, store, Letters(), table, [5], CONFIG)
    acts = crosscoder.encode(store.x)[:, 5].detach()
    first = entry["examples"][0]
    assert first["row"] == int(acts.argmax())
    start = first["row"] - first["peak"]
    assert start // 10 == first["row"] // 10  # samples have ten rows, and a context stays in its sample
    rows = range(start, start + len(first["tokens"]))
    assert first["tokens"] == [chr(ord("a") + row % 7 + 4) for row in rows]
    expected = Readout().feature_acts(crosscoder, store.x, "rl")[start : rows.stop, 5]
    torch.testing.assert_close(torch.tensor(first["activations"]["rl"]), expected, rtol=0, atol=1e-4)
    assert max(first["activations"]["joint"]) == pytest.approx(float(acts.max()), abs=1e-4)


def test_every_context_is_of_another_sample(crosscoder: Crosscoder, store: MemoryStore) -> None:
    table = feature_table(crosscoder, store, CONFIG)
    for entry in feature_examples(crosscoder, store, Letters(), table, range(12), CONFIG):
        samples = [example["sample"] for example in entry["examples"]]
        assert len(set(samples)) == len(samples) <= 3


def test_random_contexts_are_of_their_part_of_the_range(crosscoder: Crosscoder, store: MemoryStore) -> None:
    table = feature_table(crosscoder, store, CONFIG)
    [entry] = feature_examples(crosscoder, store, Letters(), table, [5], CONFIG.replace(n_quantiles=3))
    acts = crosscoder.encode(store.x)[:, 5].detach()
    active = acts[acts > 0].sort().values
    assert entry["n_active"] == len(active)
    assert entry["n_random_rows"] == 200
    sizes = [len(part) for part in torch.tensor_split(active, 3)]
    edges = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    for part, first, last in zip(entry["quantiles"], edges[:-1], edges[1:], strict=True):
        assert part["smallest"] == pytest.approx(float(active[first]), abs=1e-4)
        assert part["largest"] == pytest.approx(float(active[last - 1]), abs=1e-4)
        assert 1 <= len(part["examples"]) <= 2
        for example in part["examples"]:
            value = example["activations"]["joint"][example["peak"]]
            assert value == pytest.approx(float(acts[example["row"]]), abs=1e-4)
            assert part["smallest"] <= value <= part["largest"]


def test_random_contexts_follow_the_seed(crosscoder: Crosscoder, store: MemoryStore) -> None:
    table = feature_table(crosscoder, store, CONFIG)

    def rows(seed: int) -> list[int]:
        config = CONFIG.replace(quantile_seed=seed)
        [entry] = feature_examples(crosscoder, store, Letters(), table, [5], config)
        return [example["row"] for part in entry["quantiles"] for example in part["examples"]]

    assert rows(0) == rows(0)
    assert rows(0) != rows(1)


def test_what_is_not_asked_for_is_not_there(crosscoder: Crosscoder, store: MemoryStore) -> None:
    table = feature_table(crosscoder, store, CONFIG)
    [entry] = feature_examples(crosscoder, store, Letters(), table, [5], CONFIG.replace(n_quantiles=0))
    assert entry["quantiles"] == []
    assert entry["promoted"] is None


def test_a_dead_feature_has_no_contexts(crosscoder: Crosscoder, store: MemoryStore) -> None:
    with torch.no_grad():
        crosscoder.b_enc[0] = -1e6
    table = feature_table(crosscoder, store, CONFIG)
    [entry] = feature_examples(crosscoder, store, Letters(), table, [0], CONFIG)
    assert (entry["examples"], entry["quantiles"], entry["n_active"]) == ([], [], 0)


def test_an_id_out_of_range_is_one_sentence(crosscoder: Crosscoder, store: MemoryStore) -> None:
    table = feature_table(crosscoder, store, CONFIG)
    with pytest.raises(SelectionError, match=r"12 .* 0 to 11"):
        feature_examples(crosscoder, store, Letters(), table, [12], CONFIG)


def test_shown_features_are_live_and_named_once(crosscoder: Crosscoder, store: MemoryStore) -> None:
    with torch.no_grad():
        crosscoder.b_enc[0] = -1e6
    shown = shown_features(feature_table(crosscoder, store, CONFIG), 4)
    assert len(set(shown)) == len(shown)
    assert 0 not in shown
