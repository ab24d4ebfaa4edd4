"""The page of features by example: its content, and that no text from prompts, tokens or labels becomes markup."""

from pathlib import Path
from typing import Any

import pytest

from mechprobe.features.examples.labels import label_features
from mechprobe.files import read_json, write_json
from mechprobe.report import stage as render
from mechprobe.report.stage import report
from tests.report.conftest import examples, write_run
from tests.report.test_report import Tags

HOSTILE = (
    '</script><script>alert(1)</script>',
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}",
    "{% include 'report.html.j2' %}",
    "\x1b]0;title\x07\x1b[31mred",
    "a\u202eb",
    "\u2028</div>",
    "<!--",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "draw_figures", lambda *_: {})


def with_everything(tokens: tuple[str, ...] = ("a", "b", "c")) -> list[dict[str, Any]]:
    """Entries with random contexts and promoted tokens that consist of the given tokens."""
    effects = [{"token": token, "id": k, "value": 1.0 - k} for k, token in enumerate(tokens)]
    promoted = {name: {"promoted": effects, "suppressed": effects[::-1]} for name in ("base", "sft", "rl")}
    return [
        {
            **entry,
            "n_active": 1200,
            "n_random_rows": 21_000,
            "promoted": {"final_norm": "scale", "models": promoted},
            "quantiles": [
                {"low": 0.0, "high": 0.5, "smallest": 0.1, "largest": 1.0, "examples": entry["examples"][:1]},
                {"low": 0.5, "high": 1.0, "smallest": 1.0, "largest": 4.0, "examples": entry["examples"][:1]},
            ],
        }
        for entry in examples(tokens)
    ]


def page_of(run: Path) -> str:
    return (report(run).parent / "examples.html").read_text()


def test_every_feature_has_a_section_and_a_link_to_it(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "run", examples=with_everything()))
    tags = Tags(text)
    assert not tags.open
    anchors = {attributes["id"] for tag, attributes in tags.found if tag == "h2"}
    links = {attributes["href"] for tag, attributes in tags.found if tag == "a"}
    own = {link[1:] for link in links if link and link.startswith("#f")}
    assert anchors == own == {f"f{k}" for k in range(20)}
    assert "active on 1,200 of 21,000 tokens" in text
    assert "50 to 100 % of active tokens: 1.00 to 4.00" in text
    assert text.index('href="#f11"') < text.index('href="#f12"')  # selected first
    manifest = read_json(tmp_path / "run" / "report" / "manifest.json")
    assert "examples.html" in manifest["outputs"]
    assert 'href="examples.html"' in (tmp_path / "run" / "report" / "index.html").read_text()


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", examples=with_everything(HOSTILE))
    entries = read_json(run / "features" / "examples.json")["features"]
    said = iter(HOSTILE * 3)
    label_features(entries, lambda entry: next(said), name=HOSTILE[1], out=run / "labels.json")
    text = page_of(run)
    tags = Tags(text)
    assert not tags.open
    names = {tag for tag, _ in tags.found}
    assert not names & {"img", "iframe", "object", "base", "form"}
    assert [tag for tag, _ in tags.found].count("script") == 2  # the page's own
    assert not any(name.startswith("on") for _, attributes in tags.found for name in attributes)
    assert not [char for char in text if char != "\n" and not char.isprintable() and char != "\u00a0"]
    assert "49" not in {part.strip() for part in text.replace("<", ">").split(">")}
    text = text[text.index("<main") :]
    assert "{{\u00a07\u00a0*\u00a07\u00a0}}" in text
    assert "&lt;script&gt;alert(1)" in text
    assert "<!--" not in text


def test_labels_are_shown_with_the_name_of_the_labeler(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", examples=with_everything())
    entries = read_json(run / "features" / "examples.json")["features"]
    label_features(entries, lambda entry: f"label {entry['feature']}", name="my rule", out=run / "labels.json")
    text = page_of(run)
    assert "my rule" in text
    assert "Feature 7: label 7" in text


def test_labels_of_other_examples_are_not_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", examples=with_everything())
    entries = read_json(run / "features" / "examples.json")["features"]
    entries[7]["examples"] = []
    label_features(entries, lambda entry: f"label {entry['feature']}", name="rule", out=run / "labels.json")
    text = page_of(run)
    assert "label 6" in text
    assert "label 7" not in text
    assert "1 of its labels belongs to other examples" in text


def test_untrusted_features_are_marked(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "run", trusted=False, examples=with_everything()))
    assert text.count('class="badge"') == 20
    assert "every feature here is untrusted" in text


def test_features_without_random_contexts_and_promoted_tokens_are_shown(tmp_path: Path) -> None:
    text = page_of(write_run(tmp_path / "run"))
    assert 'id="f19"' in text
    assert "unembedding</th>" not in text


def test_requested_features_are_added_to_the_others(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", examples=with_everything()[:3])
    write_json(run / "examples_chosen" / "examples.json", {"features": with_everything()[15:16]})
    assert 'id="f15"' in page_of(run)


def test_without_examples_there_is_no_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", without=("features",))
    assert not (report(run).parent / "examples.html").exists()


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", examples=with_everything())
    assert page_of(run) == page_of(run)


def test_another_file_named_labels_json_is_an_error(tmp_path: Path) -> None:
    from mechprobe.errors import ArtifactError

    run = write_run(tmp_path / "run", examples=with_everything())
    write_json(run / "labels.json", {"mine": 1})
    with pytest.raises(ArtifactError, match=r"labels\.json"):
        report(run)
