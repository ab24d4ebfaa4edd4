"""The stage on planted differences, through the command line, interrupted, and given what it must refuse."""

import json
import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import mechprobe as mp
from mechprobe.cache.config import StoreSubset
from mechprobe.cache.store.token_file import read_tokens
from mechprobe.cli import main
from mechprobe.drift import DivergenceResult, DriftConfig
from mechprobe.drift.divergence import parts
from mechprobe.errors import ArtifactError, ConfigError, ModelError, StoreError
from tests.builders import build_family, build_tokenizer, swap_letters
from tests.drift.divergence.conftest import RAISE, SAID, SITE, TOKEN

CONFIG = DriftConfig(positions=60, lens_texts=8, draws=100, top=4, batch_tokens=128)
FILES = ("divergence.json", "sums.safetensors", "sequences.json")


@pytest.fixture(scope="module")
def found(planted: dict[str, Path], store: Path, tmp_path_factory: pytest.TempPathFactory) -> DivergenceResult:
    return mp.drift.divergence(
        mp.ModelFamily.load(planted), store, out=tmp_path_factory.mktemp("drift") / "drift", config=CONFIG
    )


def test_a_planted_logit_shift_is_measured_exactly(
    found: DivergenceResult, family: mp.ModelFamily, store: Path
) -> None:
    token, n, kl, by_sequence = build_tokenizer().convert_tokens_to_ids(TOKEN), 0, 0.0, []
    for sequence in read_tokens(store).sequences:
        if sequence.source == "rl@1.0":
            logits = family["base"].hf(input_ids=torch.tensor([sequence.ids])).logits[0].double()
            q = logits.softmax(-1)[len(sequence.prompt_ids) - 1 : -1, token]  # the first response token included
            p = q * math.exp(RAISE) / (1 + q * math.expm1(RAISE))
            exact = p * RAISE - (q * math.expm1(RAISE)).log1p()
            by_sequence.append(float(exact.sum()))
            n, kl = n + len(q), kl + float(exact.sum())
    row = found.find(model="rl", source="own", metric="kl")[0]
    assert (row.n, row.n_sequences, row.temperature) == (n, len(by_sequence), 1.0)
    assert row.value == pytest.approx(kl / n, abs=1e-6)
    assert row.low < row.value < row.high
    raised = next(
        row for row in found.tokens if (row.model, row.source, row.kind, row.place) == ("rl", "own", "raised", 1)
    )
    assert (raised.token, raised.count, raised.share) == (TOKEN, n, 1.0)
    assert raised.mean == pytest.approx(RAISE - RAISE / found.n_ids, abs=1e-4)
    same = {(row.metric, row.layer): row.value for row in found.layers if row.model == "rl"}
    assert {same["distance", layer] for layer in range(3)} == {0.0}
    assert same["cka", 2] == pytest.approx(1.0)


def test_a_model_equal_to_base_has_no_divergence(found: DivergenceResult) -> None:
    rows = [row for row in found.rows if row.model == "rl@step_000002"]
    assert {row.source for row in rows} == {"base", "gold", "prompt"}
    zero = {"kl", "kl_reverse", "js", "tv", "entropy_change", "log_ratio"}
    assert {row.value for row in rows if row.metric in zero} == {0.0}
    assert {row.value for row in rows if row.metric == "top1_agreement"} == {1.0}


def test_the_lens_finds_the_planted_token(found: DivergenceResult) -> None:
    layers = {row.layer: row for row in found.lens if row.model == "sft"}
    assert layers[0].relative_norm == 0.0
    assert layers[1].promoted[0].token == SAID
    assert layers[1].consistency == pytest.approx(1.0, abs=1e-4)
    assert found.lens_source == "8 random token sequences"


def test_estimates_on_own_samples_are_near_the_exact_number(found: DivergenceResult) -> None:
    exact = found.interval("rl", "kl")
    for metric in ("kl_mc", "kl_k3"):
        row = found.interval("rl", metric)
        assert row.low - 0.05 <= exact.value <= row.high + 0.05
    assert any("temperature 1" in note and "at 0" in note for note in found.notes)  # sft was decoded at 0
    assert not found.find(model="rl", source="base", metric="kl_mc")
    with pytest.raises(ArtifactError, match="no kl_mc of rl in base"):
        found.interval("rl", "kl_mc", source="base")


def test_positions_are_apart_and_add_up(found: DivergenceResult, store: Path) -> None:
    stream = read_tokens(store)
    n_response = {
        s: sum(len(q.response_ids) for q in stream.sequences if q.source == s) for s in ("base@1.0", "rl@1.0", None)
    }
    kl = {(row.source, row.by, row.group): row for row in found.rows if row.model == "rl" and row.metric == "kl"}
    assert kl["own", "all", "all"].n == n_response["rl@1.0"]
    assert kl["base", "all", "all"].n == n_response["base@1.0"]
    assert kl["gold", "all", "all"].n == n_response[None]
    prompts = {s.prompt_id: len(s.prompt_ids) - 1 for s in stream.sequences}
    assert kl["prompt", "all", "all"].n == sum(prompts.values())
    for source in ("own", "base", "gold"):
        for by in ("token_class", "bucket", "task", "skill"):
            parts_of = [row for key, row in kl.items() if key[:2] == (source, by)]
            assert sum(row.n for row in parts_of) == kl[source, "all", "all"].n
            whole = sum(row.n * row.value for row in parts_of) / kl[source, "all", "all"].n
            assert whole == pytest.approx(kl[source, "all", "all"].value)
    frame = found.sums()
    mine = frame[(frame.model == "rl") & (frame.writer == "rl") & (frame.bucket != "prompt")]
    assert mine.kl.sum() / mine.n.sum() == pytest.approx(kl["own", "all", "all"].value)
    assert len(found.to_pandas()) == len(found.rows)


def test_two_models_are_compared_on_the_same_prompts(found: DivergenceResult) -> None:
    for source, by, group in (("base", "all", "all"), ("prompt", "task", "add"), ("own", "bucket", "answer")):
        pair = [found.interval(name, "kl", source=source, by=by, group=group) for name in ("sft", "rl")]
        both = found.difference("sft", "rl", source=source, by=by, group=group)
        assert both.value == pytest.approx(pair[0].value - pair[1].value)
        assert both.low <= both.value <= both.high
    assert found.difference("rl", "rl") == (0.0, 0.0, 0.0, 16)
    with pytest.raises(ArtifactError, match="no prompt in common"):
        found.difference("rl", "rl@step_000002", source="own")


def test_missing_responses_are_named(found: DivergenceResult) -> None:
    assert any("no responses of rl@step_000002," in note for note in found.notes)
    assert "rl, rl@step_000002, sft against base" in repr(found)


def interrupted(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object], after: int) -> None:
    """Run until so many parts are written."""
    write, n = parts.PartFiles.write, 0

    def counting(self: parts.PartFiles, window: int, model: str, arrays: dict[str, np.ndarray]) -> None:
        nonlocal n
        if n == after:
            raise KeyboardInterrupt
        n += 1
        write(self, window, model, arrays)

    with monkeypatch.context() as patch:
        patch.setattr(parts.PartFiles, "write", counting)
        with pytest.raises(KeyboardInterrupt):
            run()


def test_interrupted_and_resumed_it_gives_the_same_bytes(
    found: DivergenceResult, family: mp.ModelFamily, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "WINDOW_BYTES", 100 * 4 * 32)  # one or two batches in a window
    out = tmp_path / "drift"

    def run() -> DivergenceResult:
        return mp.drift.divergence(family, store, out=out, config=CONFIG)

    for after in (0, 3, 6):
        interrupted(monkeypatch, run, after)
    assert list((out / "parts").iterdir())
    run()
    for name in FILES:
        assert (out / name).read_bytes() == (found.folder / name).read_bytes(), name
    assert not (out / "parts").exists()
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    run()
    assert before == {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with pytest.raises(ArtifactError, match=r"made with other settings .*seed"):
        mp.drift.divergence(family, store, out=out, config=CONFIG.replace(seed=1))


def _killed(planted: dict[str, Path], store: Path, out: Path, after: int) -> None:
    """Measure in a process of its own, which dies as a part is about to be written."""
    write, n = parts.PartFiles.write, 0

    def dying(self: parts.PartFiles, window: int, model: str, arrays: dict[str, np.ndarray]) -> None:
        nonlocal n
        n += 1
        if n > after:
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, window, model, arrays)

    parts.PartFiles.write = dying
    mp.drift.divergence(mp.ModelFamily.load(planted), store, out=out, config=CONFIG)


def test_after_a_kill_no_finished_part_is_made_again_and_results_are_equal_to_the_byte(
    found: DivergenceResult, planted: dict[str, Path], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "WINDOW_BYTES", 100 * 4 * 32)
    out, n_kept = tmp_path / "drift", 5
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(planted, store, out, n_kept))
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    kept = {path.name for path in (out / "parts").iterdir()}
    assert len(kept) >= n_kept
    written: list[str] = []
    write = parts.PartFiles.write

    def counting(self: parts.PartFiles, window: int, model: str, arrays: dict[str, np.ndarray]) -> None:
        written.append(self.path(window, model).name)
        write(self, window, model, arrays)

    monkeypatch.setattr(parts.PartFiles, "write", counting)
    mp.drift.divergence(mp.ModelFamily.load(planted), store, out=out, config=CONFIG)
    assert written
    assert (
        not {name for name in written if "base" not in name} & kept
    )  # base waits in memory for the models of its window
    for name in FILES:
        assert (out / name).read_bytes() == (found.folder / name).read_bytes(), name


def test_the_order_in_which_models_are_given_changes_no_byte(
    found: DivergenceResult, planted: dict[str, Path], store: Path, tmp_path: Path
) -> None:
    turned = mp.ModelFamily.load(dict(reversed(planted.items())))
    again = mp.drift.divergence(turned, store, out=tmp_path / "drift", config=CONFIG)
    assert (again.folder / "divergence.json").read_bytes() == (found.folder / "divergence.json").read_bytes()
    assert again.models == ("rl", "rl@step_000002", "sft")


def test_a_store_that_keeps_a_subset_gives_its_whole_stream(
    found: DivergenceResult, family: mp.ModelFamily, prompts: Path, tmp_path: Path
) -> None:
    settings = mp.CacheConfig(
        responses=("base@1.0", "rl@1.0", "sft@0.0"), max_new_tokens=12, held_out_frac=0.2, shard_rows=64
    )
    kept = StoreSubset(rows=64, scale_rows=64)
    store = mp.cache_activations(family, prompts, [SITE], tmp_path / "cache", settings, kept=kept)
    assert store.n_rows < read_tokens(store.folder, "stream.h5").n_rows
    again = mp.drift.divergence(family, store, out=tmp_path / "drift", config=CONFIG.replace(lens_texts=0, positions=8))
    assert [row.to_dict() for row in again.find(metric="kl")] == [row.to_dict() for row in found.find(metric="kl")]
    assert not again.lens


def test_padding_rows_of_the_embedding_do_not_count(
    planted: dict[str, Path], store: Path, found: DivergenceResult, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    paths = {**planted, "wide": tmp_path / "wide"}
    shutil.copytree(planted["rl"], paths["wide"])
    model = AutoModelForCausalLM.from_pretrained(planted["rl"])
    n_rows = model.get_output_embeddings().weight.shape[0]
    model.resize_token_embeddings(n_rows + 29)
    model.save_pretrained(paths["wide"])
    wide = mp.drift.divergence(
        mp.ModelFamily.load({name: paths[name] for name in ("base", "wide")}),
        store,
        out=tmp_path / "drift",
        config=CONFIG.replace(lens_texts=0),
    )
    assert (wide.n_ids, wide.n_rows) == (found.n_ids, {"base": n_rows, "wide": n_rows + 29})
    for source in ("base", "gold", "prompt"):
        assert wide.interval("wide", "kl", source=source).value == pytest.approx(
            found.interval("rl", "kl", source=source).value, abs=1e-7
        )
    assert any("wide gives" in note and f"ids from {found.n_ids} on" in note for note in wide.notes)


def test_what_is_refused(family: mp.ModelFamily, store: Path, tmp_path: Path, planted: dict[str, Path]) -> None:
    out = tmp_path / "drift"
    with pytest.raises(ConfigError, match=r"drift\.base is 'origin', but the models are base"):
        mp.drift.divergence(family, store, out=out, config=CONFIG.replace(base="origin"))
    with pytest.raises(ConfigError, match="base is the only model"):
        mp.drift.divergence(family.subset("base"), store, out=out, config=CONFIG)
    with pytest.raises(ArtifactError, match="does not exist"):
        mp.drift.divergence(family, tmp_path / "none", out=out, config=CONFIG)
    other = build_family(tmp_path / "other", "neox", names=("base", "rl"))
    for folder in other.values():
        swap_letters(folder)
    with pytest.raises(StoreError, match="another tokenizer"):
        mp.drift.divergence(mp.ModelFamily.load(other), store, out=out, config=CONFIG)
    with pytest.raises(StoreError, match="another tokenizer"):
        mp.drift.divergence(mp.ModelFamily.load(other), read_tokens(store), out=out, config=CONFIG)
    with pytest.raises(ModelError, match="different tokenizers"):
        mp.ModelFamily.load({"base": planted["base"], "rl": other["rl"]})
    assert not out.exists()


def test_a_logit_that_is_not_finite_names_model_and_sequence(
    family: mp.ModelFamily, store: Path, tmp_path: Path
) -> None:
    with torch.no_grad():
        family["rl"].hf.get_output_embeddings().weight[5, 3] = float("nan")
    with pytest.raises(ModelError, match=r"Logits of rl are not finite in float32.*\(sequence '"):
        mp.drift.divergence(family, store, out=tmp_path / "drift", config=CONFIG)


def test_the_command(
    planted: dict[str, Path], prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("The cat sat.\nRain fell all day.\n", encoding="utf-8")
    given = [
        "drift", "--run", str(tmp_path / "run"), "--models", *(f"{name}={planted[name]}" for name in ("base", "sft")),
        "--set", f"prompts.file={prompts}", "--set", f"cache.sites=['{SITE}']", "--set", "cache.max_new_tokens=8",
        "--set", 'cache.responses=["base@1.0", "sft@0.5"]', "--set", f"drift.lens_file={texts}", "--set", "drift.draws=100",
        "--set", "drift.positions=40",
    ]  # fmt: skip
    assert main([*given, "--dry-run"]) == 0
    assert "cache would be made first" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main(given) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 40
    for text in (
        "sft  own at T=0.5",
        "sft  base at T=1",
        "sft  gold",
        "sft  prompt",
        "Linear CKA",
        "temperature 1",
        "Written to",
    ):
        assert text in said
    result = DivergenceResult.load(tmp_path / "run" / "drift")
    assert result.lens_source == "texts of texts.txt"
    assert f"{result.interval('sft', 'kl').value:.3g}" in said
    assert main([*given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["base"] == "base"
    (tmp_path / "steps/rl").mkdir(parents=True)
    (tmp_path / "steps/rl/step_000002").symlink_to(planted["rl@step_000002"])
    beside = ["--checkpoints", str(tmp_path / "steps"), "--out", str(tmp_path / "beside"), "--json"]
    assert main([*given, *beside]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == ["rl@step_000002", "sft"]
    assert main([*given, "--dry-run", "--force"]) == 0
    planned = capsys.readouterr().out
    assert "base runs once, and 1 models against it" in planned
    assert "own@0.5" in planned
    assert main([*given, "--set", "drift.base=origin", "--force"]) == 2
    assert "name one of them" in capsys.readouterr().err
