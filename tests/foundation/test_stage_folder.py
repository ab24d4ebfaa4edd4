"""Stage folders: done is skipped, other work is refused, nothing is half-written."""

import json
from pathlib import Path

import pytest

from mechprobe.errors import ArtifactError, ModelError
from mechprobe.files import dump_json, read_json, write_bytes, write_json
from mechprobe.stage_folder import MANIFEST, Remake, Stage, input_hash


def finish(folder: Path, config: dict[str, object], *, force: bool = False, text: str = "x") -> bool:
    """Run a one-file stage; True when it had to work."""
    with Stage.open(folder, name="demo", config=config, force=force) as stage:
        if stage.done:
            return False
        (folder / "a.txt").write_text(text)
        stage.finish(outputs=["a.txt"], counts={"n": 1})
        return True


def test_done_and_unchanged_is_skipped(tmp_path: Path) -> None:
    assert finish(tmp_path / "s", {"k": 1})
    assert not finish(tmp_path / "s", {"k": 1})
    assert finish(tmp_path / "s", {"k": 1}, force=True)


def test_other_settings_are_refused_with_both_values(tmp_path: Path) -> None:
    finish(tmp_path / "s", {"k": 1, "same": 2})
    with pytest.raises(ArtifactError, match=r"config\.k: 1 there, 2 asked.*--force"):
        finish(tmp_path / "s", {"k": 2, "same": 2})
    assert (tmp_path / "s" / "a.txt").read_text() == "x"


def test_unfinished_work_of_other_settings_is_refused(tmp_path: Path) -> None:
    with Stage.open(tmp_path / "s", name="demo", config={"k": 1}) as stage:
        assert not stage.done
    with pytest.raises(ArtifactError, match="unfinished stage made with other settings"):
        finish(tmp_path / "s", {"k": 2})
    assert finish(tmp_path / "s", {"k": 1})


def refuse(
    folder: Path, config: dict[str, object], error: BaseException, *, keep: bool, remake: Remake = "refused"
) -> None:
    with Stage.open(folder, name="demo", config=config, remake=remake) as stage:
        if keep:
            write_json(stage.folder / "part-0.json", config)
        raise error


def test_a_refused_command_that_kept_nothing_leaves_no_folder(tmp_path: Path) -> None:
    for error in (ModelError("the edit gives NaN"), ArtifactError("the disk is full")):
        with pytest.raises(type(error)):
            refuse(tmp_path / "s", {"k": 1}, error, keep=False, remake=False)
        assert not (tmp_path / "s").exists()


def test_a_refused_command_gives_way_to_a_corrected_one(tmp_path: Path) -> None:
    for k in (1, 2):
        with pytest.raises(ModelError, match="NaN"):
            refuse(tmp_path / "s", {"k": k}, ModelError("the edit gives NaN"), keep=True)
    with Stage.open(tmp_path / "s", name="demo", config={"k": 2}, remake="refused") as stage:
        assert read_json(stage.folder / "part-0.json") == {"k": 2}  # the same command goes on
    with pytest.raises(ArtifactError, match="unfinished stage made with other settings"):
        refuse(tmp_path / "s", {"k": 3}, ModelError(""), keep=True)  # which may now be at work, or interrupted


@pytest.mark.parametrize(
    ("error", "remake"),
    [
        (ArtifactError("the disk is full"), "refused"),
        (KeyboardInterrupt(), "refused"),
        (ModelError("no such file"), False),
    ],
)
def test_what_was_kept_is_not_given_up_for_another_reason(tmp_path: Path, error: BaseException, remake: Remake) -> None:
    with pytest.raises(type(error)):
        refuse(tmp_path / "s", {"k": 1}, error, keep=True, remake=remake)
    with pytest.raises(ArtifactError, match="--force"):
        refuse(tmp_path / "s", {"k": 2}, error, keep=True, remake=remake)
    assert read_json(tmp_path / "s" / "part-0.json") == {"k": 1}


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(ArtifactError, match="not empty and not a mechprobe stage"):
            finish(tmp_path, {}, force=force)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_input_hash_follows_the_outputs(tmp_path: Path) -> None:
    finish(tmp_path / "a", {"k": 1}, text="x")
    finish(tmp_path / "b", {"k": 1}, text="x")
    finish(tmp_path / "c", {"k": 1}, text="y")
    assert input_hash(tmp_path / "a") == input_hash(tmp_path / "b") != input_hash(tmp_path / "c")
    with pytest.raises(ArtifactError, match="does not exist"):
        input_hash(tmp_path / "d")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f.json"
    write_json(path, {"old": 1})

    def broken(_handle: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mechprobe.files.os.fsync", broken)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(path, b"new")
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_says_null_for_nan_and_is_stable() -> None:
    text = dump_json({"b": float("nan"), "a": [float("inf"), 1.5]})
    assert json.loads(text) == {"a": [None, 1.5], "b": None}
    assert text.index('"a"') < text.index('"b"')


def test_a_garbled_manifest_is_one_sentence(tmp_path: Path) -> None:
    finish(tmp_path / "s", {})
    (tmp_path / "s" / MANIFEST).write_text("{")
    with pytest.raises(ArtifactError, match="not readable JSON"):
        finish(tmp_path / "s", {})


def test_views_are_drawn_again_when_the_work_differs(tmp_path: Path) -> None:
    def view(k: int) -> bool:
        with Stage.open(tmp_path / "v", name="view", config={"k": k}, remake=True) as stage:
            if stage.done:
                return False
            (stage.folder / "a.txt").write_text(str(k))
            stage.finish(outputs=["a.txt"])
            return True

    assert [view(1), view(1), view(2), view(2)] == [True, False, True, False]


def test_a_changed_or_missing_output_is_noticed(tmp_path: Path) -> None:
    finish(tmp_path / "s", {})
    (tmp_path / "s" / "a.txt").write_text("tampered")
    for use in (lambda: finish(tmp_path / "s", {}), lambda: input_hash(tmp_path / "s")):
        with pytest.raises(ArtifactError, match=r"a\.txt was changed since its stage wrote it"):
            use()
    (tmp_path / "s" / "a.txt").unlink()
    with pytest.raises(ArtifactError, match=r"a\.txt is gone"):
        finish(tmp_path / "s", {})
    assert finish(tmp_path / "s", {}, force=True)


def test_what_a_killed_process_was_writing_goes(tmp_path: Path) -> None:
    with Stage.open(tmp_path / "s", name="demo", config={}):
        (tmp_path / "s" / ".a.txt.x1.partial").write_text("half")
    finish(tmp_path / "s", {})
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"a.txt", MANIFEST}
