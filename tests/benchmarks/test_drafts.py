"""The benchmark of drafts compares responses, and computes the cost of all draws from the draws that ran."""

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import drafts
from mechprobe.interventions.conditions.batches import DraftingRunner
from mechprobe.interventions.conditions.plan import plan
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.config import InterveneConfig
from mechprobe.models.family import ModelFamily
from mechprobe.selection.result import choose
from tests.interventions.conftest import random_crosscoder
from tests.interventions.test_checks import TASK, scores


def test_a_changed_token_is_found_with_its_logits(
    llama_family: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    family, crosscoder = ModelFamily.load(llama_family), random_crosscoder()
    chosen = choose(scores(crosscoder), "top:3", n_controls=1, site="resid_post.1", crosscoder=crosscoder.fingerprint)
    config = InterveneConfig(n_random=1, n_shuffled=1, edits_tuned=(), edits_base=("clamp:3",), doses=())
    drafting = DraftingRunner(Runner(family, crosscoder, chosen, [TASK], config))
    drafting.prepare()
    conditions = plan(chosen, {}, config)
    found = drafts.measure(drafting, conditions, 1)
    assert [row["kind"] for row in found["groups"]] == ["random", "rescaled", "shuffled"]
    assert found["responses_compared"] == 12
    assert not found["different"]

    real = drafting.responses

    def changed(batch):  # type: ignore[no-untyped-def]
        responses = real(batch)
        for of_condition in responses:
            key = (TASK.name, "s0")
            one = of_condition[key][0]
            of_condition[key] = [replace(one, written=((one.written[0] + 1) % 90, *one.written[1:]))]
        return responses

    monkeypatch.setattr(drafting, "responses", changed)
    different = drafts.measure(drafting, conditions[:20], 1)["different"]
    assert {(one["sample"], one["step"]) for one in different} == {("s0", 0)}
    assert all(one["logit_difference"] > 0 for one in different)


def test_the_summary_by_hand() -> None:
    seconds = {"drafted_cpu_s": 33.0, "stacked_cpu_s": 4.0, "plain_cpu_s": 6.0}
    row = {"kind": "random", "draws": 99, "draws_plain": 3, **seconds}
    found = drafts.summary([row, {**row, "kind": "rescaled"}])
    assert found["old_cpu_s"] == 20 * 2.0
    assert found["matched_and_equal_norm"]["share_of_old"] == 33 / 40
    assert found["all"] == {
        "draws": 198,
        "drafted_cpu_s": 66.0,
        "stacked_cpu_s": pytest.approx(264.0),
        "plain_cpu_s": 396.0,
        "share_of_old": 66 / 40,
    }
