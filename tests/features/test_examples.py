"""Top contexts: which rows, which text, which activations."""

import pytest
import torch

from mechprobe.errors import SelectionError
from mechprobe.features import FeaturesConfig, feature_examples, feature_table
from mechprobe.features.examples import shown_features
from mechprobe.features.readout import Readout
from sae_training import Crosscoder
from tests.features.conftest import MemoryStore

CONFIG = FeaturesConfig(batch_rows=64, n_examples=3, context_before=4, context_after=2)


class Letters:
    """A tokenizer of one letter a token."""

    def decode(self, ids: list[int], **_: object) -> str:
        return chr(ord("a") + ids[0])


def test_contexts_are_those_of_the_largest_activations(crosscoder: Crosscoder, store: MemoryStore) -> None:
    table = feature_table(crosscoder, store, CONFIG)
    [entry] = feature_examples(crosscoder, store, Letters(), table, [5], CONFIG)
    acts = crosscoder.encode(store.x)[:, 5].detach()
    first = entry["examples"][0]
    assert first["row"] == int(acts.argmax())
    start = first["row"] - first["peak"]
    assert start // 10 == first["row"] // 10  # samples have ten rows: no context runs over into the next
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


def test_an_id_out_of_range_is_one_sentence(crosscoder: Crosscoder, store: MemoryStore) -> None:
    table = feature_table(crosscoder, store, CONFIG)
    with pytest.raises(SelectionError, match="Feature 12 does not exist: there are features 0 to 11"):
        feature_examples(crosscoder, store, Letters(), table, [12], CONFIG)


def test_shown_features_are_live_and_named_once(crosscoder: Crosscoder, store: MemoryStore) -> None:
    with torch.no_grad():
        crosscoder.b_enc[0] = -1e6
    shown = shown_features(feature_table(crosscoder, store, CONFIG), 4)
    assert len(set(shown)) == len(shown)
    assert 0 not in shown
