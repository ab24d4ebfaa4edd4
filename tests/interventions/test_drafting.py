"""Responses from drafts are those of plain generation inside the edit, whatever the drafts, the edits and the site."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.token_rule import TokenRule
from mechprobe.interventions.conditions.batches import DraftingRunner, batches, has_drafts, run_conditions
from mechprobe.interventions.conditions.plan import plan
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.drafting import checking, together
from mechprobe.interventions.drafting.checking import DraftBlock
from mechprobe.interventions.drafting.clean_states import CleanModels, PaddedPrompts, PromptBatch
from mechprobe.interventions.drafting.decoding import Begun, _Batch
from mechprobe.interventions.drafting.forward import DraftError
from mechprobe.interventions.drafting.rules import Decoding, Tokens
from mechprobe.interventions.drafting.together import Together
from mechprobe.interventions.edits.edit import Edit
from mechprobe.interventions.edits.edit_functions import build_rewrite, read_models
from mechprobe.interventions.hooks.positions import PositionMask, PositionRule
from mechprobe.interventions.hooks.rewriting import SiteRewrite, rewriting_sites
from mechprobe.memory import forget_limits
from mechprobe.models import log_probs
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import Asked, Generated, generate
from mechprobe.progress import forget_told
from mechprobe.selection.result import choose
from mechprobe.types import Site
from sae_training import Crosscoder
from tests.interventions.conftest import random_crosscoder
from tests.interventions.test_checks import TASK, scores

POSITIONS = ("all", "prompt", "response", "last_prompt_token", "response:not_tokens=5,6,7", "all:not_special")
EDITS = ("ablate", "clamp:3", "scale:4", "transplant", "replace", "steer:2", "project")
ENDS = tuple(range(4, 16))
"""Tokens that end a response here, so that responses of a random model end early, late and not at all."""
PROMPTS = ((1, 8, 9, 20), (1, 30), (1, 8, 9, 20), (1, 40, 41, 42, 43, 44, 45))


def changes(family: ModelFamily, host: str, site: Site, seed: int, *, dropping: bool = False) -> list[SiteRewrite]:
    """Edits of random features, one at every kind of position."""
    crosscoder = random_crosscoder(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    leaves = TokenRule(1, {"base": 7.0, "rl": 8.0}) if dropping else None
    donor = "rl" if host == "base" else "base"
    found = []
    for index, text in enumerate(EDITS):
        edit = Edit.parse(text)
        ids = torch.randperm(48, generator=generator)[:8].tolist()
        readout = Readout("joint" if index % 2 else "swap")
        rewrite = build_rewrite(crosscoder, ids, edit, host=host, donor=donor, readout=readout)
        reads = tuple(read_models(crosscoder, edit, host=host, donor=donor, readout=readout))
        mask = PositionMask(PositionRule.parse(POSITIONS[(index + seed) % len(POSITIONS)]), [0, 1, 2, 3])
        found.append(SiteRewrite(site, rewrite, reads, mask, f"edit {text}", leaves))
    return found


def asked_of(family: ModelFamily, host: str) -> Asked:
    return Asked.of(family[host], family.tokenizer, ENDS)


def options(decoding: Decoding) -> dict[str, object]:
    return {**vars(decoding), "end_ids": ENDS}


def plain(family: ModelFamily, host: str, change: SiteRewrite | None, decoding: Decoding) -> list[Generated]:
    """Token by token, inside the edit."""
    model = family[host]
    siblings = {name: family[name].hf for name in (change.reads if change else ())}
    with rewriting_sites(model.hf, [change] if change else [], host_name=host, siblings=siblings):
        return generate(model, family.tokenizer, PROMPTS, **options(decoding))  # pyright: ignore[reportArgumentType]


def drafted(
    family: ModelFamily,
    host: str,
    edits: Sequence[SiteRewrite],
    drafts: Sequence[Sequence[Tokens]],
    decoding: Decoding,
    batch_size: int = 256,
) -> list[list[Generated]]:
    siblings = {name: family[name] for name in ("base", "sft", "rl") if name != host}
    work = Together(family[host], edits[0].site, siblings)
    return work.respond(edits, asked_of(family, host), PROMPTS, drafts, decoding, batch_size=batch_size)


def clean(family: ModelFamily, host: str, decoding: Decoding) -> list[list[Tokens]]:
    return [[one.written] for one in plain(family, host, None, decoding)]


@pytest.mark.parametrize(("host", "layer", "seed"), [("base", 0, 0), ("rl", 1, 1), ("base", 2, 2), ("rl", 2, 3)])
@pytest.mark.parametrize("decoding", [Decoding(9), Decoding(7, n=2, temperature=0.9, top_p=0.95, top_k=40, seed=3)])
def test_drafted_responses_are_those_of_plain_generation(
    family: ModelFamily, host: str, layer: int, seed: int, decoding: Decoding
) -> None:
    edits = changes(family, host, Site(layer), seed, dropping=seed % 2 == 1)
    other = clean(family, "rl" if host == "base" else "base", decoding)
    drafts = [own + donor for own, donor in zip(clean(family, host, decoding), other, strict=True)]
    found = drafted(family, host, edits, drafts, decoding)
    expected = [plain(family, host, edit, decoding) for edit in edits]
    assert found == expected
    assert found == drafted(family, host, edits, drafts, decoding, batch_size=3)
    first = {tuple(one.written for one in of_edit) for of_edit in expected}
    assert len(first) > 3, "edits that change nothing test nothing"
    assert {one.finish for of_edit in expected for one in of_edit} == {"stop", "length"}


class Logits(TorchDispatchMode):
    """Records how many logits the largest tensor has that an operation makes; weights do not count."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.most, self._n = 0, int(model.config.vocab_size)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        self._weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for made in tree_leaves(output):
            whole = isinstance(made, torch.Tensor) and made.ndim > 1 and made.shape[-1] == self._n
            if whole and made.untyped_storage().data_ptr() not in self._weights:
                self.most = max(self.most, made.numel())
        return output


@pytest.mark.parametrize("decoding", [Decoding(24), Decoding(24, temperature=0.9, seed=5)])
@pytest.mark.parametrize("layer", [1, 2])
def test_a_check_makes_the_logits_of_a_few_tokens_at_a_time(
    family: ModelFamily, layer: int, decoding: Decoding, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits, model = changes(family, "base", Site(layer), 6), family["base"].hf
    drafts = [[*own, (8,) * 24] for own in clean(family, "base", decoding)]
    expected = drafted(family, "base", edits, drafts, decoding)
    check = DraftBlock.check
    for n_rows in (1, 4, 7):
        sizes = list[int]()

        def watched(*given: Any, sizes: list[int] = sizes) -> Any:
            with Logits(model) as logits:
                found = list(check(*given))
            sizes.append(logits.most)
            return found

        monkeypatch.setattr(DraftBlock, "check", watched)
        for module in (checking, log_probs):
            monkeypatch.setattr(module, "CHUNK_VALUES", n_rows * model.config.vocab_size)
        assert drafted(family, "base", edits, drafts, decoding) == expected
        if not decoding.temperature:  # the random numbers of sampling have a limit of their own
            assert 0 < max(sizes) <= n_rows * model.config.vocab_size


def test_out_of_memory_takes_fewer_prompts_at_a_time(
    family: ModelFamily, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    edits, decoding = changes(family, "base", Site(1), 4), Decoding(7)
    drafts = clean(family, "base", decoding)
    expected = drafted(family, "base", edits, drafts, decoding)

    def small(models: CleanModels, prompts: PaddedPrompts, pad_id: int, *, whole: bool) -> PromptBatch:
        if len(prompts.rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return PromptBatch(models, prompts, pad_id, whole=whole)

    forget_limits()
    forget_told()
    monkeypatch.setattr(together, "PromptBatch", small)
    assert drafted(family, "base", edits, drafts, decoding) == expected
    forget_limits()
    [line] = [record.getMessage() for record in caplog.records]
    assert "memory ran out, so 2 responses are taken at a time" in line


@pytest.mark.parametrize("family_name", ["qwen3_family", "neox_family"])
def test_other_architectures(family_name: str, request: pytest.FixtureRequest) -> None:
    family = ModelFamily.load(request.getfixturevalue(family_name))
    decoding = Decoding(6)
    for layer in (0, 2):
        edits = changes(family, "base", Site(layer), 5)
        found = drafted(family, "base", edits, clean(family, "base", decoding), decoding)
        assert found == [plain(family, "base", edit, decoding) for edit in edits]


@cache
def expected_of(family: ModelFamily, stop: tuple[str, ...]) -> tuple[list[SiteRewrite], list[list[Generated]]]:
    edits = changes(family, "base", Site(1), 4)
    return edits, [plain(family, "base", edit, Decoding(8, stop)) for edit in edits]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), stop=st.sampled_from([(), ("a", "9b")]))
def test_whatever_the_drafts_are(family: ModelFamily, data: st.DataObject, stop: tuple[str, ...]) -> None:
    """Right, wrong at random places, empty, shorter and longer than the response, with stop texts and end tokens inside."""
    edits, expected = expected_of(family, stop)
    decoding = Decoding(8, stop)
    token = st.integers(4, len(family.tokenizer) - 1)
    drafts = clean(family, "base", decoding)
    for row, known in enumerate(drafts):
        for _ in range(data.draw(st.integers(0, 3))):
            right = expected[data.draw(st.integers(0, len(edits) - 1))][row].written
            end = data.draw(st.integers(0, len(right)))
            known.append((*right[:end], *data.draw(st.lists(token, max_size=6))))
    assert drafted(family, "base", edits, drafts, decoding) == expected


def test_no_drafts_at_all(family: ModelFamily) -> None:
    edits, expected = expected_of(family, ())
    assert drafted(family, "base", edits, [[] for _ in PROMPTS], Decoding(8)) == expected


def test_ties_are_decoded_token_by_token(tmp_path: Path, llama_family: dict[str, Path]) -> None:
    """Every token has a twin with the same logit: no position is clear, and the responses are those of plain generation."""
    family = ModelFamily.load(llama_family)
    host = family["base"].hf
    with torch.no_grad():
        weight = host.get_output_embeddings().weight
        weight[20:52] = weight[52:84]
        weight[:20] = weight[20:40]
    decoding = Decoding(6)
    edits = changes(family, "base", Site(1), 6)
    found = drafted(family, "base", edits, clean(family, "base", decoding), decoding)
    assert found == [plain(family, "base", edit, decoding) for edit in edits]


def test_batches_give_the_responses_of_single_conditions(
    family: ModelFamily, crosscoder: Crosscoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of condition of a run: sets, controls, vectors, reconstruction and ceilings."""
    chosen = choose(scores(crosscoder), "top:3", n_controls=2, site="resid_post.1", crosscoder=crosscoder.fingerprint)
    config = InterveneConfig(n_random=2, n_shuffled=2, sizes=(1,), positions="all:not_special")
    runner = Runner(family, crosscoder, chosen, [TASK], config)
    conditions = [condition for condition in plan(chosen, {}, config) if set(condition.tasks) <= {TASK.name}]
    monkeypatch.setattr("mechprobe.interventions.conditions.batches.MOST_CONDITIONS", 7)
    drafting, seen = DraftingRunner(runner), []
    for batch in batches(runner, conditions):
        assert len(batch) <= 7
        seen += [condition.name for condition in batch]
        if not has_drafts(runner, batch[0]):
            continue
        for condition, found in zip(batch, drafting.responses(batch), strict=True):
            with runner.in_force(condition):
                for asking in drafting.askings(runner.tasks_of(condition)):
                    expected = asking.responses(runner.family[condition.model])
                    assert found == asking.by_sample(expected), condition.name
        assert drafting.run(batch) == [runner.run(condition) for condition in batch]
    assert sorted(seen) == sorted(condition.name for condition in conditions)
    assert {c.how for c in conditions if has_drafts(runner, c)} >= {"edit", "patch", "vector", "rescaled", "shuffled"}


def test_an_interrupted_batch_runs_whole_again(family: ModelFamily, crosscoder: Crosscoder) -> None:
    chosen = choose(scores(crosscoder), "top:3", n_controls=2, site="resid_post.1", crosscoder=crosscoder.fingerprint)
    config = InterveneConfig(n_random=2, n_shuffled=1, sizes=(), edits_tuned=("ablate",), edits_base=(), doses=())
    runner = Runner(family, crosscoder, chosen, [TASK], config)
    conditions = [condition for condition in plan(chosen, {}, config) if set(condition.tasks) <= {TASK.name}]
    whole = {condition.name: codes for condition, codes in run_conditions(runner, conditions)}
    assert list(whole)
    assert not list(run_conditions(runner, conditions, done=list(whole)))
    missing = "rl|ablate|random 1"
    again = {c.name: codes for c, codes in run_conditions(runner, conditions, done=[n for n in whole if n != missing])}
    assert missing in again
    assert "rl|ablate|random 0" in again
    assert again.items() <= whole.items()


def test_hooks_and_blocks_are_left_as_they_were(family: ModelFamily) -> None:
    decoding, model = Decoding(5), family["base"].hf
    before = clean(family, "base", decoding)
    drafted(family, "base", changes(family, "base", Site(1), 0), before, decoding)
    assert not [name for name, module in model.named_modules() if module._forward_hooks or "forward" in vars(module)]
    assert clean(family, "base", decoding) == before


def test_a_model_that_contradicts_its_own_responses_is_refused(family: ModelFamily) -> None:
    decoding = Decoding(5)
    wrong = [[tuple(token + 1 for token in draft)] for (draft,) in clean(family, "base", decoding)]
    with pytest.raises(DraftError, match="does not give its own responses"):
        drafted(family, "base", changes(family, "base", Site(1), 0), wrong, decoding)


class _Kept(DraftBlock):
    """What a block is made of."""

    def __init__(self, *parts: object) -> None:
        self.parts = parts


def test_what_is_read_after_the_recorded_responses_have_ended_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended rows stay in the batch until they are many, and calls without a recorded row follow."""
    monkeypatch.setattr("mechprobe.interventions.drafting.decoding.DraftBlock", _Kept)
    batch, prompts = _Batch.__new__(_Batch), PromptBatch.__new__(PromptBatch)
    batch._wanted, batch._begun, batch._rows = [0], [Begun(0, 3, (), recorded=True)], torch.zeros(2, dtype=torch.int64)
    batch._written = [[5, 6, 7], [5] * 9]
    spans = [torch.full((1, width, 4), float(width)) for width in (1, 2, 3)]
    batch._records = [*(([0], {"rl": span}) for span in spans), ([], {"rl": torch.zeros(0, 2, 4)})]
    prompts.end = SimpleNamespace(clean={"rl": torch.zeros(4, 4)})  # type: ignore[assignment]
    block = batch.recorded(prompts)
    assert isinstance(block, _Kept)
    _, rows, drafts, found = block.parts
    assert (rows, drafts) == ([3], [(5, 6, 7)])
    assert found["rl"][0, :, 0].tolist() == [1.0, 2.0]  # type: ignore[index]  # the last token is never read
