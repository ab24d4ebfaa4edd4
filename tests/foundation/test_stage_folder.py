"""Stage folders: finished work is reused, other work is never overwritten, and nothing is half-written."""

from pathlib import Path

import pytest

from mechprobe.errors import ArtifactError, ModelError
from mechprobe.files import read_json, write_json
from mechprobe.stage_folder import MANIFEST, Remake, Stage, input_hash, require_creatable


def finish(folder: Path, config: dict[str, object], *, force: bool = False, text: str = "x") -> bool:
    """Run a stage of one file; return whether it had to work."""
    with Stage.open(folder, name="demo", config=config, force=force) as stage:
        if stage.done:
            return False
        (folder / "a.txt").write_text(text)
        stage.finish(outputs=["a.txt"], counts={"n": 1})
        return True


def refuse(
    folder: Path, config: dict[str, object], error: BaseException, *, keep: bool, remake: Remake = "refused"
) -> None:
    """Run a stage that ends with an error, after it has kept a file or not."""
    with Stage.open(folder, name="demo", config=config, remake=remake) as stage:
        if keep:
            write_json(stage.folder / "part-0.json", config)
        raise error


def test_finished_work_is_reused(tmp_path: Path) -> None:
    assert finish(tmp_path / "s", {"k": 1})
    assert not finish(tmp_path / "s", {"k": 1})
    assert finish(tmp_path / "s", {"k": 1}, force=True)


def test_other_settings_are_an_error_with_both_values(tmp_path: Path) -> None:
    finish(tmp_path / "s", {"k": 1, "same": 2})
    with pytest.raises(ArtifactError, match=r"config\.k: 1 .* 2 .*--force") as caught:
        finish(tmp_path / "s", {"k": 2, "same": 2})
    assert "same" not in str(caught.value)
    assert (tmp_path / "s" / "a.txt").read_text() == "x"


def test_hashes_are_not_shown_and_settings_are_named_instead_of_their_hash(tmp_path: Path) -> None:
    first, second = ("a" * 64, "b" * 64)
    with Stage.open(tmp_path / "s", name="x", config={"features": "top50", "sets": first}) as stage:
        stage.finish(outputs=[])
    for features, shown, hidden in (("top10", "config.features", "config.sets"), ("top50", "config.sets", second)):
        with pytest.raises(ArtifactError, match=shown) as error:
            Stage.check(tmp_path / "s", name="x", config={"features": features, "sets": second})
        assert hidden not in str(error.value)
        assert first not in str(error.value)


def test_unfinished_work_with_other_settings_is_an_error(tmp_path: Path) -> None:
    with Stage.open(tmp_path / "s", name="demo", config={"k": 1}) as stage:
        assert not stage.done
    with pytest.raises(ArtifactError, match=r"unfinished.*config\.k"):
        finish(tmp_path / "s", {"k": 2})
    assert finish(tmp_path / "s", {"k": 1})


@pytest.mark.parametrize("error", [ModelError("the edit gives NaN"), ArtifactError("the disk is full")])
def test_a_failed_command_that_kept_nothing_leaves_no_folder(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        refuse(tmp_path / "s", {"k": 1}, error, keep=False, remake=False)
    assert not (tmp_path / "s").exists()


def test_a_corrected_command_replaces_what_a_refused_one_kept(tmp_path: Path) -> None:
    for k in (1, 2):
        with pytest.raises(ModelError, match="NaN"):
            refuse(tmp_path / "s", {"k": k}, ModelError("the edit gives NaN"), keep=True)
    with Stage.open(tmp_path / "s", name="demo", config={"k": 2}, remake="refused") as stage:
        assert read_json(stage.folder / "part-0.json") == {"k": 2}  # the same command resumes
    with pytest.raises(ArtifactError, match=r"unfinished.*config\.k"):
        refuse(tmp_path / "s", {"k": 3}, ModelError(""), keep=True)  # the resumed command may still be running


@pytest.mark.parametrize(
    ("error", "remake"),
    [
        (ArtifactError("the disk is full"), "refused"),
        (KeyboardInterrupt(), "refused"),
        (ModelError("no such file"), False),
    ],
)
def test_a_command_that_failed_for_another_reason_keeps_its_work(
    tmp_path: Path, error: BaseException, remake: Remake
) -> None:
    with pytest.raises(type(error)):
        refuse(tmp_path / "s", {"k": 1}, error, keep=True, remake=remake)
    with pytest.raises(ArtifactError, match="--force"):
        refuse(tmp_path / "s", {"k": 2}, error, keep=True, remake=remake)
    assert read_json(tmp_path / "s" / "part-0.json") == {"k": 1}


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_the_user_is_never_emptied(tmp_path: Path, force: bool) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ArtifactError, match="not empty"):
        finish(tmp_path, {}, force=force)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("force", [False, True])
def test_the_folder_of_another_stage_is_never_emptied(tmp_path: Path, force: bool) -> None:
    finish(tmp_path / "s", {})
    with (
        pytest.raises(ArtifactError, match=r"'demo'.*'other'"),
        Stage.open(tmp_path / "s", name="other", config={}, force=force),
    ):
        pass
    assert (tmp_path / "s" / "a.txt").is_file()


def test_check_raises_what_open_raises_and_writes_nothing(tmp_path: Path) -> None:
    finish(tmp_path / "s", {"k": 1})
    with pytest.raises(ArtifactError, match=r"config\.k"):
        Stage.check(tmp_path / "s", name="demo", config={"k": 2})
    Stage.check(tmp_path / "new" / "deep", name="demo", config={})
    assert not (tmp_path / "new").exists()


def test_check_refuses_a_folder_that_cannot_be_created(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for folder, reason in (
        (tmp_path / "file" / "a" / "b", r"file/a/b .*file is a file"),
        (tmp_path / ("x" * 300), "name too long"),
        (Path("a\0b"), "null"),
    ):
        with pytest.raises(ArtifactError, match=rf"(?s){reason}.*--out"):
            Stage.check(folder, name="demo", config={})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_parent_without_write_permission_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mechprobe.stage_folder.os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(ArtifactError, match="not writable"):
        require_creatable(tmp_path / "new")


def test_input_hash_follows_the_outputs(tmp_path: Path) -> None:
    finish(tmp_path / "a", {"k": 1}, text="x")
    finish(tmp_path / "b", {"k": 1}, text="x")
    finish(tmp_path / "c", {"k": 1}, text="y")
    assert input_hash(tmp_path / "a") == input_hash(tmp_path / "b") != input_hash(tmp_path / "c")
    with pytest.raises(ArtifactError, match="does not exist"):
        input_hash(tmp_path / "d")


@pytest.mark.parametrize("text", ["{", "[]", '{"stage": "demo"}'])
def test_a_damaged_manifest_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    finish(tmp_path / "s", {})
    (tmp_path / "s" / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=MANIFEST):
        input_hash(tmp_path / "s")


def test_a_view_is_made_again_if_its_work_differs(tmp_path: Path) -> None:
    def view(k: int) -> bool:
        with Stage.open(tmp_path / "v", name="view", config={"k": k}, remake=True) as stage:
            if stage.done:
                return False
            (stage.folder / "a.txt").write_text(str(k))
            stage.finish(outputs=["a.txt"])
            return True

    assert [view(1), view(1), view(2), view(2)] == [True, False, True, False]


def test_a_changed_or_missing_output_is_an_error(tmp_path: Path) -> None:
    finish(tmp_path / "s", {})
    (tmp_path / "s" / "a.txt").write_text("tampered")
    for use in (lambda: finish(tmp_path / "s", {}), lambda: input_hash(tmp_path / "s")):
        with pytest.raises(ArtifactError, match=r"a\.txt has changed"):
            use()
    (tmp_path / "s" / "a.txt").unlink()
    with pytest.raises(ArtifactError, match=r"a\.txt is missing"):
        finish(tmp_path / "s", {})
    assert finish(tmp_path / "s", {}, force=True)


@pytest.mark.parametrize("force", [False, True])
def test_a_second_command_may_not_write_the_folder(tmp_path: Path, force: bool) -> None:
    with Stage.open(tmp_path / "s", name="demo", config={}):
        (tmp_path / "s" / "part-0").touch()
        with (
            pytest.raises(ArtifactError, match=r"Another process is writing .*wait for it"),
            Stage.open(tmp_path / "s", name="demo", config={}, force=force),
        ):
            pass
        assert (tmp_path / "s" / "part-0").exists()
    assert finish(tmp_path / "s", {}, force=force)


@pytest.mark.parametrize("beside_others", [False, True])
def test_partial_files_of_a_killed_process_are_removed(tmp_path: Path, beside_others: bool) -> None:
    partial = tmp_path / "s" / "a.txt.x1.partial"
    with Stage.open(tmp_path / "s", name="demo", config={}):
        partial.write_text("half")
    with Stage.open(tmp_path / "s", name="demo", config={}, beside_others=beside_others):
        assert partial.exists() == beside_others


def test_settings_that_change_no_result_are_not_compared(tmp_path: Path) -> None:
    """Earlier versions recorded ``ce_batch``; a stage that still states its batch size trains with it."""
    finish(tmp_path / "old", {"k": 1, "ce_batch": 32, "batch_size": 8})
    assert not finish(tmp_path / "old", {"k": 1})
    with pytest.raises(ArtifactError, match=r"config\.batch_size: 8 in the folder, 16 now"):
        finish(tmp_path / "old", {"k": 1, "batch_size": 16})
    with pytest.raises(ArtifactError, match=r"config\.k"):
        finish(tmp_path / "old", {"k": 2})
