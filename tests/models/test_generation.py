"""Generation: draws that do not depend on the batch, stop texts, end tokens of a family, and ids without an embedding."""

from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig

from mechprobe.errors import InputError, ModelError
from mechprobe.evals.answering import log_likelihoods
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import Generated, generate
from mechprobe.models.residuals import residuals_plain
from mechprobe.models.sampling import SeededSampling, cut_at_stop
from mechprobe.types import Site
from tests.builders import build_family, build_tokenizer
from tests.zoo import tiny_model

PROMPTS = ["Ab1+2=", "x", "longer prompt here?", "9", "zz top"]
SAMPLED = {"temperature": 1.3, "top_k": 40, "top_p": 0.95, "seed": 5, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def family(llama_family: dict[str, Path]) -> ModelFamily:
    return ModelFamily.load(llama_family)


def save(model: torch.nn.Module, folder: Path) -> ModelFamily:
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return ModelFamily.load({"base": folder})


def test_draws_depend_on_seed_prompt_and_draw_alone(family: ModelFamily) -> None:
    base = family["base"]

    def drawn(prompts: list[str], **other: int) -> list[Generated]:
        return generate(base, base.tokenizer, prompts, **(SAMPLED | other))

    three = drawn(PROMPTS, n=3)
    assert three == drawn(PROMPTS, n=3, batch_size=4)
    assert [*drawn(PROMPTS[::-1], n=3)] == [item for i in range(4, -1, -1) for item in three[3 * i : 3 * i + 3]]
    assert drawn(PROMPTS[2:3], n=2) == three[6:8]
    assert len({item.token_ids for item in three}) > 12
    assert drawn(["x", "x"]) == three[3:5], "a prompt given twice gets the next draw"
    assert drawn(PROMPTS, seed=6) != drawn(PROMPTS)


def test_drawn_tokens_follow_the_filtered_distribution() -> None:
    n, logits = 4000, torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf])
    rows = logits.repeat(n, 1)
    ids = torch.zeros(n, 1, dtype=torch.int64)

    def shares(**options: float) -> torch.Tensor:
        sampling = SeededSampling(
            range(n), torch.device("cpu"), **({"temperature": 1.0, "top_p": 1.0, "top_k": 0} | options)
        )
        return sampling(ids, rows.clone()).argmax(-1).bincount(minlength=5) / n

    assert torch.allclose(shares(), logits.softmax(-1), atol=0.03)
    assert torch.allclose(shares(temperature=2.0), (logits / 2).softmax(-1), atol=0.03)
    assert torch.allclose(shares(top_k=2)[:2], logits[:2].softmax(-1), atol=0.03)
    assert shares(top_k=2)[2:].sum() == shares(top_p=0.8)[2:].sum() == 0


def test_a_stop_text_ends_the_response_before_it(family: ModelFamily) -> None:
    base = family["base"]
    whole = generate(base, base.tokenizer, PROMPTS, max_new_tokens=12)
    stop = whole[0].text[3:5]
    found = generate(base, base.tokenizer, PROMPTS, max_new_tokens=12, stop=(stop, "never written"))
    assert found[0].finish == "stop"
    for item, full in zip(found, whole, strict=True):
        assert item.text == full.text.partition(stop)[0]
        assert base.tokenizer.decode(item.token_ids, skip_special_tokens=True) == item.text
        assert item.finish == ("stop" if stop in full.text else full.finish)
    with pytest.raises(InputError, match="stop text is empty"):
        generate(base, base.tokenizer, PROMPTS, stop=("",))


def test_a_token_that_contains_the_stop_text_is_not_kept() -> None:
    tokenizer = build_tokenizer(("ANSWER",))
    ids = tokenizer("1+ANSWER2ANSWER", add_special_tokens=False).input_ids
    assert cut_at_stop(tokenizer, ids, ["SWE"]) == ("1+AN", tuple(ids[:2]), True)
    assert cut_at_stop(tokenizer, ids, ["SWE"], n_prefix=3) == ("1+ANSWER2AN", tuple(ids[:4]), True)
    assert cut_at_stop(tokenizer, ids, ["3"]) == ("1+ANSWER2ANSWER", tuple(ids), False)


def test_several_greedy_responses_are_refused(family: ModelFamily) -> None:
    with pytest.raises(InputError, match="temperature"):
        generate(family["base"], family.tokenizer, ["x"], n=2)


def test_the_end_tokens_of_one_model_end_the_responses_of_all(tmp_path: Path) -> None:
    folders = build_family(tmp_path, names=("base", "rl"))
    alone = ModelFamily.load({"base": folders["base"]})
    full = generate(alone["base"], alone.tokenizer, ["Ab1+2="], max_new_tokens=12)[0]
    end = next(token for index, token in enumerate(full.token_ids) if index > 2 and token not in full.token_ids[:index])
    GenerationConfig(eos_token_id=[2, end]).save_pretrained(folders["rl"])
    family = ModelFamily.load(folders)
    assert alone.identity == {}
    assert family.identity == {"end_token_ids": [2, end]}
    for members in (family, family.subset("base")):
        assert members.end_token_ids == members["base"].end_ids == (2, end)
        assert members.identity == family.identity
        cut = generate(members["base"], members.tokenizer, ["Ab1+2="], max_new_tokens=12)[0]
        assert cut.token_ids == full.token_ids[: full.token_ids.index(end)]
        assert cut.finish == "stop"


def test_ids_beyond_the_tokenizer_are_never_written(tmp_path: Path) -> None:
    n = len(build_tokenizer())
    model = tiny_model("llama")
    model.resize_token_embeddings(n + 28, mean_resizing=False)
    head = model.get_output_embeddings().weight
    head[n] = head[5] * 1e4
    head[n + 1] = -head[n]  # one of the two has the largest logit everywhere
    base = save(model, tmp_path)["base"]
    ids = torch.tensor([base.tokenizer("abc").input_ids])
    assert base.hf(input_ids=ids).logits[0, -1].argmax() >= n
    for options in ({}, {"temperature": 1.0, "n": 8}):
        for item in generate(base, base.tokenizer, ["abc", "d"], max_new_tokens=6, **options):
            assert item.token_ids
            assert max(item.token_ids) < n


def test_ids_without_a_row_in_some_model_are_refused_or_never_written(tmp_path: Path) -> None:
    n = len(build_tokenizer())
    for name, rows in (("base", n - 20), ("rl", n)):
        model = tiny_model("llama")
        model.resize_token_embeddings(rows)
        model.save_pretrained(tmp_path / name)
        build_tokenizer().save_pretrained(tmp_path / name)
    family = ModelFamily.load({name: tmp_path / name for name in ("base", "rl")})
    assert family.n_token_ids == n - 20
    unknown = int(n - 1)
    head = family["rl"].hf.get_output_embeddings().weight
    head[unknown] = head[5] * 1e4
    head[unknown - 1] = -head[unknown]
    for item in generate(family["rl"], family.tokenizer, ["12", "3"], max_new_tokens=6):
        assert max(item.token_ids) < n - 20
    with pytest.raises(InputError, match=f"token {unknown} .*only ids below {n - 20}"):
        generate(family["rl"], family.tokenizer, [[5, unknown]])


def test_padding_beyond_the_embedding_is_replaced(tmp_path: Path) -> None:
    family = save(tiny_model("llama"), tmp_path)
    expected = generate(family["base"], family.tokenizer, PROMPTS, max_new_tokens=6)
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == family["base"].n_rows
    tokenizer.save_pretrained(tmp_path)
    beyond = ModelFamily.load({"base": tmp_path})
    assert beyond.pad_id == 0
    assert generate(beyond["base"], beyond.tokenizer, PROMPTS, max_new_tokens=6) == expected


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    base = save(tiny_model("llama"), tmp_path)["base"]
    base.hf.get_output_embeddings().weight[7] = value
    for ask in (
        lambda: generate(base, base.tokenizer, PROMPTS, max_new_tokens=3),
        lambda: generate(base, base.tokenizer, PROMPTS, max_new_tokens=3, temperature=1.0),
        lambda: log_likelihoods(base, [((5, 6), (7, 8))]),
    ):
        with pytest.raises(ModelError, match="Logits of base are not finite in float32; check its weights"):
            ask()


def test_overflow_in_float16_names_the_mend(tmp_path: Path) -> None:
    model = tiny_model("llama")
    for weight in (model.get_output_embeddings().weight, model.base_model.norm.weight):
        weight.mul_(1e4)  # each fits float16, their product does not
    save(model, tmp_path)
    half = ModelFamily.load({"base": tmp_path}, dtype="float16")["base"]
    with pytest.raises(ModelError, match="not finite in float16; load it in bfloat16 or float32"):
        generate(half, half.tokenizer, ["abc"], max_new_tokens=2)


def test_a_model_that_padding_changes_gets_prompts_of_one_length_only(tmp_path: Path) -> None:
    base = save(tiny_model("bart"), tmp_path)["base"]
    assert not base.behaviour.padding
    together = generate(base, base.tokenizer, PROMPTS, max_new_tokens=6)
    assert together == [generate(base, base.tokenizer, [prompt], max_new_tokens=6)[0] for prompt in PROMPTS]
    pairs = [((5, 6, 7), (8, 9)), ((4,), (8, 9)), ((5, 6), (3,))]
    alone = [log_likelihoods(base, [pair])[0] for pair in pairs]
    assert log_likelihoods(base, pairs) == pytest.approx(alone, abs=1e-5)
    ids, mask = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 4]]), torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    padded = residuals_plain(base, ids, mask, [Site(1)])[Site(1)][1, 2:]
    whole = residuals_plain(base, ids[1:, 2:], mask[1:, 2:], [Site(1)])[Site(1)][0]
    assert torch.allclose(padded, whole, atol=1e-5)


def test_the_input_of_the_unembedding_is_contiguous_in_16_bits(tmp_path: Path) -> None:
    save(tiny_model("llama"), tmp_path)
    hf = ModelFamily.load({"base": tmp_path}, dtype="bfloat16")["base"].hf
    seen: list[bool] = []
    hf.get_output_embeddings().register_forward_pre_hook(lambda _head, inputs: seen.append(inputs[0].is_contiguous()))
    hf(input_ids=torch.ones(3, 5, dtype=torch.int64), logits_to_keep=1)
    assert seen == [True]
