"""Collateral: exactly zero without an edit, equal to a naive second implementation with one; and the source of the texts."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mechprobe.cache.store.activation_store import StoredSequence
from mechprobe.data.encoding import PromptEncoder
from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.tasks import Task
from mechprobe.interventions.collateral import CollateralTexts, measure_collateral, texts_of_file, texts_of_store
from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.hooks.attach import edited
from mechprobe.models.family import ModelFamily
from mechprobe.records import Sample
from mechprobe.selection.result import Selection, choose
from mechprobe.selection.scores import Scores
from sae_training import Crosscoder

SITE = "resid_post.1"
TEXTS = ["unrelated text", "x", "12", "another, longer one?", "zz"]
TASK = Task("sum", (Sample("s0", "sum", "1+1=", "2"),), scorer("exact"), 2)


@pytest.fixture(scope="module")
def texts(family: ModelFamily) -> CollateralTexts:
    return CollateralTexts(tuple(tuple(family.tokenizer(text).input_ids) for text in TEXTS), "five texts")


@pytest.fixture(scope="module")
def selection(crosscoder: Crosscoder) -> Selection:
    ones = torch.ones(crosscoder.d_sae, dtype=torch.float64).numpy()
    difference = torch.zeros(32, dtype=torch.float64).numpy()
    scores = Scores(("sum",), (1,), ones[None], ones[None], ones, ones, ones, difference, difference, ones[None] > 0)
    return choose(scores, "ids:3,7,11", site=SITE, crosscoder=crosscoder.fingerprint, n_controls=0)


def runner(family: ModelFamily, crosscoder: Crosscoder, selection: Selection, **settings: object) -> Runner:
    return Runner(family, crosscoder, selection, [TASK], InterveneConfig(**settings))


def condition(ids: Sequence[int], edit: str = "ablate", donor: str | None = None) -> Condition:
    return Condition(f"base|{edit}|{len(ids)}", "base", edit, "set", "selected", "edit", tuple(ids), donor)


def test_an_empty_edit_has_exactly_none(
    family: ModelFamily, crosscoder: Crosscoder, selection: Selection, texts: CollateralTexts
) -> None:
    [found] = measure_collateral(runner(family, crosscoder, selection), [condition([])], texts, seed=0).values()
    n = sum(len(ids) - 1 for ids in texts.sequences)
    assert found.kl == found.ce_change == (0.0, 0.0, 0.0, n)


@pytest.mark.parametrize(("edit", "donor"), [("ablate", None), ("clamp:3.0", None), ("transplant", "rl")])
def test_it_equals_one_text_at_a_time(
    family: ModelFamily,
    crosscoder: Crosscoder,
    selection: Selection,
    texts: CollateralTexts,
    edit: str,
    donor: str | None,
) -> None:
    """Without padding, in float64 from probabilities, position by position."""
    found = measure_collateral(
        runner(family, crosscoder, selection), [condition(selection.features, edit, donor)], texts, seed=0
    )
    base, kl, change, n = family["base"], 0.0, 0.0, 0
    for ids in texts.sequences:
        row = torch.tensor([ids])
        with torch.no_grad():
            clean = base.hf(row).logits[0].double().softmax(-1)
            with edited(base, crosscoder, selection, edit, donor=donor, siblings=family) as model:
                after = model(row).logits[0].double().softmax(-1)
        for position, target in enumerate(ids[1:]):
            p, q = clean[position], after[position]
            kl += float((p * (p / q).log()).sum())
            change += float((p[target] / q[target]).log())
            n += 1
    [measured] = found.values()
    assert measured.kl[0] == pytest.approx(kl / n, rel=1e-3)
    assert measured.ce_change[0] == pytest.approx(change / n, rel=1e-3, abs=1e-6)
    assert measured.kl[0] > 1e-6
    assert measured.kl[1] <= measured.kl[0] <= measured.kl[2]
    assert measured.kl[3] == n


def test_only_main_edits_and_their_comparisons_are_measured(
    family: ModelFamily, crosscoder: Crosscoder, selection: Selection, texts: CollateralTexts
) -> None:
    main = condition(selection.features)
    kinds = {"random": "random 0", "size": "first 1", "dose": "dose", "opposite": "opposite", "left_out": "without"}
    others = [replace(main, name=name, set_kind=kind) for kind, name in kinds.items()]
    found = measure_collateral(runner(family, crosscoder, selection), [main, *others], texts, seed=0)
    assert list(found) == [main.name]


def test_positions_of_a_generation_do_not_hide_collateral(
    family: ModelFamily, crosscoder: Crosscoder, selection: Selection, texts: CollateralTexts
) -> None:
    """A text that is read in one pass is all prompt, so an edit of the response only would seem to have no effect."""
    main = condition(selection.features)
    every = measure_collateral(runner(family, crosscoder, selection), [main], texts, seed=0)
    later = measure_collateral(runner(family, crosscoder, selection, positions="response"), [main], texts, seed=0)
    assert every == later
    with pytest.raises(ConfigError, match="everywhere"):
        runner(family, crosscoder, selection, positions="everywhere")


def test_positions_reach_generation(family: ModelFamily, crosscoder: Crosscoder, selection: Selection) -> None:
    strong = condition(range(40), "clamp:30")
    tasks = [Task("sum", tuple(Sample(f"s{i}", "sum", f"{i}+{i}=", "2") for i in range(6)), scorer("exact"), 4)]

    def responses(positions: str) -> list[str]:
        from mechprobe.models.generation import generate

        made = Runner(family, crosscoder, selection, tasks, InterveneConfig(positions=positions))
        with made.in_force(strong):
            model = family["base"]
            return [
                g.text
                for g in generate(model.hf, model.tokenizer, [s.prompt for s in tasks[0].samples], max_new_tokens=4)
            ]

    every, prompt, later = (responses(name) for name in ("all", "prompt", "response"))
    assert every != prompt
    assert every != later


def test_texts_of_a_file(family: ModelFamily, tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    rows = [{"prompt": "ab", "response": "cd"}, {"prompt": "e"}, {"prompt": "f"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = family.tokenizer
    found = texts_of_file(path, PromptEncoder(tokenizer), 2)
    assert [tokenizer.decode(ids, skip_special_tokens=True) for ids in found.sequences] == ["abcd", "e"]
    assert found.source == "texts of corpus.jsonl"
    assert [len(ids) for ids in found.limited(1, 3).sequences] == [3]
    assert found.fingerprint != found.limited(1, 3).fingerprint
    with pytest.raises(InputError, match=r"gone.jsonl"):
        texts_of_file(tmp_path / "gone.jsonl", PromptEncoder(tokenizer), 2)


class Sequences:
    """The part of an activation store that collateral reads, with every second sequence held out."""

    def __init__(self, sequences: Sequence[StoredSequence]) -> None:
        self.sequences = sequences

    def held_out_samples(self) -> list[int]:
        return list(range(0, len(self.sequences), 2))

    def sequence(self, sample: int) -> StoredSequence:
        return self.sequences[sample]


def stored(prompt: int, source: str | None, *, task: str | None = None, ids: tuple[int, ...] = ()) -> StoredSequence:
    """A sequence of three prompt tokens (or ``ids``) and two response tokens."""
    given = ids or (1, 10 + prompt, 20)
    response = (False,) * len(given) + (True, True)
    return StoredSequence(str(prompt), str(prompt), task, source, (*given, 30, 31), response, response, True, range(0))


def test_texts_of_a_store_are_held_out_prompts_of_no_task(family: ModelFamily) -> None:
    asked = tuple(family.tokenizer("1+1=").input_ids)
    sequences = [
        stored(0, "base@1.0"), stored(1, None), stored(0, "rl@0.0"), stored(1, None), stored(2, None, task="sum"),
        stored(3, None), stored(4, "base@1.0", ids=asked), stored(5, None), stored(6, None),
    ]  # fmt: skip
    found = texts_of_store(Sequences(sequences), [TASK], family, 100)
    assert found is not None
    # prompt 0 once, without the response of the model; all of prompt 6; no prompt of a task, by its name or by its tokens
    assert found.sequences == ((1, 10, 20), (1, 16, 20, 30, 31))
    assert found.source == "held-out prompts of no task"
    assert len(texts_of_store(Sequences(sequences), [TASK], family, 1).sequences) == 1


def test_related_text_is_named_as_related(family: ModelFamily) -> None:
    sequences = [stored(k, "base@1.0", task="sum") for k in range(4)]
    found = texts_of_store(Sequences(sequences), [TASK], family, 100)
    assert found is not None
    assert "related text" in found.source
    assert found.sequences == ((1, 10, 20), (1, 12, 20))
    assert texts_of_store(Sequences([]), [TASK], family, 100) is None
