"""Multiple choice and tasks of lm-evaluation-harness under edits, on a planted cause.

rl is base plus one vector in one block's bias; feature 0 of the dictionary writes that vector in rl and nothing in base.
Transplanting it into base gives rl, and ablating it in rl gives base, on every metric and every document.
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mechprobe.data.encoding import PromptEncoder
from mechprobe.data.prompts import Prompt
from mechprobe.errors import ConfigError, DependencyError, InputError
from mechprobe.evals.answering import log_likelihoods, run_tasks
from mechprobe.evals.choice import ChoiceItem, MultipleChoice
from mechprobe.evals.config import ChoiceConfig, HarnessConfig
from mechprobe.evals.harness import OTHER_SEED, PYTHON_SEED, HarnessTasks
from mechprobe.evals.stage import evaluate_outcomes
from mechprobe.evals.tasks import Task, split_halves
from mechprobe.files import read_json
from mechprobe.interventions.conditions.plan import Condition
from mechprobe.interventions.conditions.relative_change import relative_changes
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.harness.result import HarnessResults, harness_table, markdown_table, truncated_sentence
from mechprobe.interventions.harness.stage import evaluate_harness, require_boundary
from mechprobe.interventions.hooks.attach import edited
from mechprobe.interventions.stage import intervene
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import generate
from mechprobe.random_state import isolated_random_state
from mechprobe.selection.config import SelectConfig
from mechprobe.selection.result import Selection
from mechprobe.selection.stage import select_features
from sae_training import Crosscoder, CrosscoderConfig
from tests.builders import build_family, build_tokenizer
from tests.planted import SITE, STRENGTH, D, plant, saying

N = 32
PROMPTS = [f"{i}+{(7 * i) % 23}=" for i in range(N)]


@pytest.fixture(scope="module", autouse=True)
def datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    import datasets

    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
    yield
    patch.undo()


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFamily, torch.Tensor]:
    """The family, and the vector that makes the model say "Q"."""
    paths = build_family(tmp_path_factory.mktemp("planted"), "neox", noise=0.0)
    direction = saying(paths["base"], "Q")
    plant(paths["rl"], direction)
    return ModelFamily.load(paths), direction


@pytest.fixture(scope="module")
def family(planted: tuple[ModelFamily, torch.Tensor]) -> ModelFamily:
    return planted[0]


@pytest.fixture(scope="module")
def crosscoder(planted: tuple[ModelFamily, torch.Tensor]) -> Crosscoder:
    """ReLU dictionary over (base, sft, rl): feature 0 is the cause, the others write the same in all models."""
    generator = torch.Generator().manual_seed(0)
    made = Crosscoder(
        CrosscoderConfig(n_models=3, d_model=D, d_sae=24, k=4, variant="l1", model_names=("base", "sft", "rl"))
    )
    made.set_scale([1.0, 1.0, 1.0])
    with torch.no_grad():
        made.b_dec_flat.zero_()
        made.decoder.copy_((0.2 * torch.randn(24, D, generator=generator)).repeat(1, 3))
        made.encoder.copy_(0.02 * torch.randn(24, 3 * D, generator=generator))
        made.b_enc.fill_(0.2)
        made.encoder[0].zero_()
        made.b_enc[0] = 1.0
        made.decoder[0].zero_()
        made.decoder[0, 2 * D :] = STRENGTH * planted[1]
    return made.eval()


@pytest.fixture(scope="module")
def quiz(family: ModelFamily) -> Task:
    """Two options for every prompt, one of them Q; the right one is more likely under rl."""
    options = [("Q", "abcdefgh"[i % 8]) for i in range(N)]
    model = family["rl"]
    pairs = [
        PromptEncoder(model.tokenizer).encode_pair(Prompt(p, p), o)
        for p, both in zip(PROMPTS, options, strict=True)
        for o in both
    ]
    scores = log_likelihoods(model, pairs)
    items = {
        f"q{i}": ChoiceItem(PROMPTS[i], both, int(scores[2 * i + 1] > scores[2 * i])) for i, both in enumerate(options)
    }
    judge = MultipleChoice(ChoiceConfig(show="none", delimiter=""), items)
    return Task("quiz", tuple(judge.sample(key, "quiz") for key in items), judge)


def codes(outcomes: list[Any]) -> str:
    return "".join(outcome.outcome[0] for outcome in outcomes)


def test_multiple_choice_under_edits_is_the_other_model(
    family: ModelFamily, crosscoder: Crosscoder, quiz: Task
) -> None:
    clean = {name: codes(run_tasks(family[name], [quiz])) for name in ("base", "rl")}
    assert clean["rl"] == "r" * N
    assert "w" in clean["base"]
    with edited(family["rl"], crosscoder, [0], "ablate", site=SITE):
        assert codes(run_tasks(family["rl"], [quiz])) == clean["base"]
    options = {"site": SITE, "donor": "rl", "siblings": family}
    with edited(family["base"], crosscoder, [0], "transplant", **options):
        assert codes(run_tasks(family["base"], [quiz])) == clean["rl"]
    assert {name: codes(run_tasks(family[name], [quiz])) for name in ("base", "rl")} == clean


@pytest.mark.parametrize("edit", ["ablate", "clamp:3.0", "transplant"])
@pytest.mark.parametrize("positions", ["all", "prompt", "response"])
def test_edited_log_likelihoods_do_not_depend_on_the_batch(
    family: ModelFamily, crosscoder: Crosscoder, edit: str, positions: str
) -> None:
    model = family["base"]
    texts = [(prompt, rest) for prompt in ("x", "a longer one", "3+4=") for rest in ("Q", "abc", "abd", "Qx")]
    pairs = [PromptEncoder(model.tokenizer).encode_pair(Prompt(p, p), o) for p, o in texts]
    clean = log_likelihoods(model, pairs)
    options: Any = {"site": SITE, "donor": "rl" if edit == "transplant" else None, "siblings": family}
    with edited(model, crosscoder, [0, 1, 2, 3], edit, positions=positions, **options):
        together = log_likelihoods(model, pairs)
        apart = [log_likelihoods(model, [pair])[0] for pair in pairs]
    assert together == pytest.approx(apart, abs=1e-5)
    single = [index for index, (_, rest) in enumerate(texts) if len(rest) == 1]
    longer = [index for index in range(len(texts)) if index not in single]
    if positions == "response":  # only the prompt decides a single token
        assert [together[i] for i in single] == pytest.approx([clean[i] for i in single], abs=1e-5)
    else:
        assert all(abs(together[i] - clean[i]) > 1e-4 for i in single)
    assert all(abs(together[i] - clean[i]) > 1e-4 for i in longer)


def test_multiple_choice_goes_through_selection_and_verdict(
    family: ModelFamily, crosscoder: Crosscoder, quiz: Task, tmp_path: Path
) -> None:
    outcomes = evaluate_outcomes(family, [quiz], tmp_path / "e")
    _, judging = split_halves(quiz, seed=0)
    held_out = {quiz.name: [sample.id for sample in judging.samples]}
    config = SelectConfig(rule="top:1", n_controls=5, min_gained=1)
    selection = select_features(
        crosscoder, family, outcomes, site=SITE, out=tmp_path / "s", config=config, held_out=held_out
    )
    assert selection.features == (0,)
    settings = InterveneConfig(
        features="top:1", n_random=2, n_shuffled=1, n_per_task=None, sizes=(), doses=(), compare=(), min_n=5,
        edits_base=("transplant",), edits_tuned=("transplant",),
    )  # fmt: skip
    found = intervene(family, crosscoder, selection, [judging], tmp_path / "i", settings)
    gain, ceiling = (
        found.condition(f"base|{name}").accuracy_delta["pooled"][0]
        for name in ("transplant|top:1", "patch|whole residual")
    )
    assert gain == ceiling > 0  # there is no share, because the ceiling of so few samples is not clear of 0
    random = [row for row in found.conditions if row.set_kind == "random" and row.edit == "transplant"]
    assert random
    assert all(row.accuracy_delta["pooled"][0] == 0 for row in random)


@pytest.fixture(scope="module")
def yaml_tasks(family: ModelFamily, quiz: Task, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A generation task answered by rl and a multiple-choice task, each as a YAML file with JSON lines."""
    folder = tmp_path_factory.mktemp("yaml")
    said = generate(family["rl"].hf, family.tokenizer, PROMPTS, max_new_tokens=2)
    rows = [{"question": p, "answer": a.text.strip()} for p, a in zip(PROMPTS, said, strict=True)]
    judge = quiz.scorer
    assert isinstance(judge, MultipleChoice)
    items = [judge.items[sample.id] for sample in quiz.samples]
    choices = [{"question": i.stem, "choices": list(i.options), "label": i.right} for i in items]
    for name, lines in (("says", rows), ("picks", choices)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shared = (
        'dataset_path: json\ndataset_kwargs:\n  data_files: {}\ntest_split: train\ndoc_to_text: "{{{{question}}}}"\n'
    )
    (folder / "says.yaml").write_text(
        "task: says\noutput_type: generate_until\n"
        + shared.format(folder / "says.jsonl")
        + 'doc_to_target: "{{answer}}"\ngeneration_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 2\n  do_sample: false\n'
        + "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\n"
    )
    (folder / "picks.yaml").write_text(
        "task: picks\noutput_type: multiple_choice\n"
        + shared.format(folder / "picks.jsonl")
        + 'doc_to_target: label\ndoc_to_choice: choices\ntarget_delimiter: ""\n'
        + "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
    )
    return [folder / "says.yaml", folder / "picks.yaml"]


@pytest.fixture(scope="module")
def selection(
    family: ModelFamily, crosscoder: Crosscoder, quiz: Task, tmp_path_factory: pytest.TempPathFactory
) -> Selection:
    folder = tmp_path_factory.mktemp("selection")
    outcomes = evaluate_outcomes(family, [quiz], folder / "e")
    config = SelectConfig(rule="top:1", n_controls=5, min_gained=1)
    return select_features(crosscoder, family, outcomes, site=SITE, out=folder / "s", config=config)


CONFIG = InterveneConfig(features="top:1", edits_tuned=("ablate",), edits_base=("transplant",))


@pytest.fixture(scope="module")
def results(
    family: ModelFamily,
    crosscoder: Crosscoder,
    selection: Selection,
    yaml_tasks: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[HarnessResults, Path]:
    out = tmp_path_factory.mktemp("harness") / "h"
    settings = HarnessConfig(n_random=2, batch_size=16)
    return evaluate_harness(family, crosscoder, selection, yaml_tasks, out, CONFIG, harness=settings), out


def test_clean_numbers_are_lm_evals_own(
    family: ModelFamily, yaml_tasks: list[Path], results: tuple[HarnessResults, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness loads the model folder itself, through its usual entry point."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr(
        "lm_eval.evaluator.add_env_info", lambda results: None
    )  # it spends seconds on pip list and lscpu
    own: Any = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(family["rl"].path), "dtype": "float32"},
        tasks=[str(path) for path in yaml_tasks],
        device="cpu",
        batch_size=16,
        task_manager=TaskManager(include_defaults=False),  # files are enough, and the index of names is slow
    )
    mine = results[0].condition("rl|clean").metrics
    for task, key in (("says", "exact_match,none"), ("picks", "acc,none")):
        assert mine[task][key].value == own["results"][task][key]
        name = key.replace(",", "_stderr,")
        assert mine[task][key].stderr == own["results"][task][name]
        values = read_json(results[1] / "values.json")["rl|clean"][task][key]
        assert values == [float(row[key.partition(",")[0]]) for row in own["samples"][task]]
    assert set(mine) == {"says", "picks"}


def test_edits_have_their_planted_effect_on_the_harness(results: tuple[HarnessResults, Path]) -> None:
    values = read_json(results[1] / "values.json")
    assert values["rl|ablate|top:1"] == values["base|clean"]
    assert values["base|transplant|top:1"] == values["rl|clean"]
    assert values["base|clean"] != values["rl|clean"]
    for task, key in (("says", "exact_match,none"), ("picks", "acc,none")):
        high, low = (results[0].condition(f"{m}|clean").metrics[task][key].value for m in ("rl", "base"))
        assert high == 1.0
        cell = results[0].condition("rl|ablate|top:1").metrics[task][key]
        assert cell.change[0] == pytest.approx(low - high)
        assert cell.change[1] <= cell.change[0] <= cell.change[2] < 0
        assert cell.change[3] == cell.n == N
        gained = results[0].condition("base|transplant|top:1").metrics[task][key]
        assert gained.random_mean == 0.0
        assert gained.p_random == pytest.approx(1 / 3)  # above both random sets
    assert gained.value == 1.0
    assert {row.name for row in results[0].conditions if row.set_kind == "clean"} == {
        "base|clean", "sft|clean", "rl|clean",
    }  # fmt: skip


def test_edits_on_the_harness_have_a_relative_change(
    family: ModelFamily, crosscoder: Crosscoder, selection: Selection, results: tuple[HarnessResults, Path]
) -> None:
    """It equals the relative change on the same contexts as ordinary prompts."""
    found, out = results
    main = [row for row in found.conditions if row.set_kind == "selected"]
    contexts = [*PROMPTS[:4], *PROMPTS[:4]]
    tokens = sum(len(family.tokenizer(text).input_ids) for text in contexts)
    assert (found.changes.bound, found.changes.n_tokens, found.changes.far) == (10.0, tokens, [])
    runner = Runner(family, crosscoder, selection, [], CONFIG)
    for row in main:
        condition = Condition(row.name, row.model, row.edit, "set", "selected", "edit", (0,), "rl")
        expected, _ = relative_changes(
            runner, [condition], [tuple(family.tokenizer(text).input_ids) for text in contexts]
        )
        assert row.relative_change == pytest.approx(expected[row.name].largest)
        assert row.relative_change > 0
    others = [row for row in read_json(out / "results.json")["conditions"] if row["set_kind"] == "clean"]
    assert others
    assert all(row["relative_change"] is None for row in others)


def test_the_table_is_written_and_has_every_cell(results: tuple[HarnessResults, Path]) -> None:
    text = (results[1] / "table.md").read_text()
    columns, rows = harness_table(results[0])
    assert columns == ["picks acc", "says exact_match"] or columns == ["says exact_match", "picks acc"]
    assert all(label.replace("  ", " ") in text for label in rows)
    conditions = [
        row.model_copy(update={"features": 'rule:"mas_rl>0.5 | x"', "metrics": {"a_|b": row.metrics["picks"]}})
        for row in results[0].conditions
    ]
    wild = results[0].model_copy(update={"n": {"a_|b": 1}, "conditions": conditions})
    table = [line for line in markdown_table(wild).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {3}
    assert table[0] == r"| condition | a\_\|b acc |"
    assert r'rule:"mas\_rl&gt;0.5 \| x"' in table[2]
    assert r"documents: a\_\|b 1." in markdown_table(wild)
    assert len(rows) == 5
    assert f"documents: says {N}, picks {N}" in text or f"documents: picks {N}, says {N}" in text
    assert rows["rl  clean  none"]["picks acc"].startswith("1.000 ± 0.000")


def test_a_finished_stage_is_reused_and_an_interrupted_one_resumes(
    family: ModelFamily,
    crosscoder: Crosscoder,
    selection: Selection,
    yaml_tasks: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = HarnessConfig(limit=4, batch_size=16)

    def run(out: Path) -> HarnessResults:
        return evaluate_harness(family, crosscoder, selection, yaml_tasks[1:], out, CONFIG, harness=settings)

    whole = run(tmp_path / "whole")
    assert whole.n == {"picks": 4}
    real, calls = HarnessTasks.run, []

    def failing(self: HarnessTasks, model: Any) -> Any:
        calls.append(model.name)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, model)

    monkeypatch.setattr(HarnessTasks, "run", failing)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut")
    run(tmp_path / "cut")
    assert calls == ["base", "sft", "rl", "rl", "base", "rl"]
    run(tmp_path / "cut")
    assert len(calls) == 6
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {path.name for path in (tmp_path / "cut").iterdir()} == names
    for name in names - {"manifest.json"}:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_fingerprint_depends_on_the_documents(yaml_tasks: list[Path], tmp_path: Path) -> None:
    settings = HarnessConfig(limit=4)
    first = HarnessTasks([yaml_tasks[1]], settings).fingerprint
    assert HarnessTasks([yaml_tasks[1]], settings).fingerprint == first
    rows = yaml_tasks[1].with_suffix(".jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "picks.jsonl").write_text("".join([rows[1], *rows[1:]]))
    moved = yaml_tasks[1].read_text().replace(str(yaml_tasks[1].with_suffix(".jsonl")), str(tmp_path / "picks.jsonl"))
    (tmp_path / "picks.yaml").write_text(moved)
    assert HarnessTasks([tmp_path / "picks.yaml"], settings).fingerprint != first
    assert HarnessTasks([yaml_tasks[1]], HarnessConfig(limit=3)).fingerprint != first


def test_the_callers_random_state_is_left_alone(family: ModelFamily, yaml_tasks: list[Path]) -> None:
    import random

    import numpy as np

    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    HarnessTasks([yaml_tasks[1]], HarnessConfig(limit=2)).run(family["base"])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    state = random.getstate()  # checked alone, because beartype draws from it when it checks a list
    with isolated_random_state(OTHER_SEED, python_seed=PYTHON_SEED):
        assert random.random() == random.Random(0).random()
    assert random.getstate() == state


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: [", "YAML"),
        ("just words", "t.yaml"),
        ("output_type: multiple_choice\n", "'task'"),
        ("task: x\ndataset_path: json\ndataset_kwargs:\n  data_files: nowhere.jsonl\n", "nowhere.jsonl"),
        ("include: nowhere.yaml\ntask: x\n", "nowhere.yaml"),
    ],
)
def test_yaml_files_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        HarnessTasks([tmp_path / "t.yaml"], HarnessConfig())


def test_a_task_that_does_not_fit_its_data_is_found_before_any_model_runs(
    yaml_tasks: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "t.yaml").write_text(yaml_tasks[1].read_text().replace("doc_to_choice: choices", "doc_to_choice: gone"))
    with pytest.raises(InputError, match=r"picks|t\.yaml"):
        HarnessTasks([tmp_path / "t.yaml"], HarnessConfig())


def test_a_metric_that_lm_eval_does_not_have_is_found_before_any_model_runs(
    yaml_tasks: list[Path], tmp_path: Path
) -> None:
    text = yaml_tasks[0].read_text()
    (tmp_path / "t.yaml").write_text(text.replace("metric: exact_match", "metric: exact_macht"))
    with pytest.raises(InputError, match="exact_macht"):
        HarnessTasks([tmp_path / "t.yaml"], HarnessConfig())


def test_a_chat_template_that_the_tokenizer_lacks(
    family: ModelFamily, crosscoder: Crosscoder, selection: Selection, yaml_tasks: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="chat template"):
        evaluate_harness(
            family, crosscoder, selection, yaml_tasks, tmp_path / "h", harness=HarnessConfig(chat_template=True)
        )
    assert not (tmp_path / "h").exists()


def test_positions_that_a_single_call_does_not_show(yaml_tasks: list[Path]) -> None:
    asked = HarnessTasks(yaml_tasks, HarnessConfig(limit=2))
    assert asked.likelihood_names == ["picks"]
    require_boundary("all", asked.likelihood_names)
    require_boundary("response", [])
    for positions in ("prompt", "response", "last_prompt_token"):
        with pytest.raises(ConfigError, match="picks.*" + positions):
            require_boundary(positions, asked.likelihood_names)


def test_missing_names_and_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.yaml"):
        HarnessTasks([tmp_path / "gone.yaml"], HarnessConfig())
    with pytest.raises(ConfigError, match="--task"):
        HarnessTasks([], HarnessConfig())


def test_a_name_that_lm_eval_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval.tasks import TaskManager

    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **_: TaskManager(include_defaults=False))
    with pytest.raises(ConfigError, match=r"arc_esay.*lm-eval ls tasks"):
        HarnessTasks(["arc_esay"], HarnessConfig())


@pytest.mark.slow
def test_a_benchmark_without_its_data_is_named() -> None:
    """The real index of tasks, with data that are neither on this machine nor available for download."""
    with pytest.raises(InputError, match="arc_easy"):
        HarnessTasks(["arc_easy"], HarnessConfig())


def test_without_lm_eval_the_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(DependencyError, match=r"pip install 'mechprobe\[evals\]'"):
        HarnessTasks(["arc_easy"], HarnessConfig())


def long_task(folder: Path, kind: str) -> Path:
    """A task whose documents have 61, 62 and 63 tokens with BOS; the context holds 64."""
    rows = [{"question": "x" * n, "choices": ["a", "b"], "answer": "a", "label": 0} for n in (60, 61, 62)]
    (folder / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    target = {
        "generate_until": 'doc_to_target: "{{answer}}"\ngeneration_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 2\n',
        "multiple_choice": 'doc_to_target: label\ndoc_to_choice: choices\ntarget_delimiter: "=="\n',
    }[kind]
    (folder / "long.yaml").write_text(
        f"task: long\noutput_type: {kind}\ndataset_path: json\ndataset_kwargs:\n  data_files: {folder / 'long.jsonl'}\n"
        f'test_split: train\ndoc_to_text: "{{{{question}}}}"\n{target}'
    )
    return folder / "long.yaml"


@pytest.mark.parametrize(("kind", "n"), [("generate_until", 1), ("multiple_choice", 1)])
def test_prompts_longer_than_the_context_are_counted_before_any_model_runs(
    family: ModelFamily, tmp_path: Path, kind: str, n: int
) -> None:
    """A context of 64 holds a prompt of 62 and a response of 2; of options, lm-eval scores 65 tokens with the prompt."""
    asked = HarnessTasks([long_task(tmp_path, kind)], HarnessConfig())
    assert asked.truncated(family) == {"long": n}
    sentence = truncated_sentence({"long": n}, {"long": 3})
    assert sentence.startswith(f"Truncated prompts: with the response, {n} of 3 in long are longer than the context")
    assert truncated_sentence({}) == ""


def test_tasks_that_fit_have_no_truncated_prompt(
    family: ModelFamily, yaml_tasks: list[Path], results: tuple[HarnessResults, Path]
) -> None:
    assert HarnessTasks(yaml_tasks, HarnessConfig()).truncated(family) == results[0].truncated == {}
    assert "Truncated" not in (results[1] / "table.md").read_text()


def test_the_end_tag_is_passed_on_where_it_is_known(family: ModelFamily) -> None:
    from tokenizers import AddedToken

    from mechprobe.evals.harness import _think_end_token

    assert _think_end_token(family.tokenizer, "</think>") is None
    for special in (True, False):
        tokenizer = build_tokenizer()
        tokenizer.add_tokens([AddedToken("</think>", special=special)])
        token = tokenizer.get_vocab()["</think>"]
        assert _think_end_token(tokenizer, "</think>") == (token if special else "</think>")
        assert _think_end_token(tokenizer, "") is None
