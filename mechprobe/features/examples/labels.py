"""Labels of features, from a function that the user supplies. This module calls no model and no service itself."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mechprobe.display import Displayed
from mechprobe.errors import ArtifactError, LabelError
from mechprobe.files import dump_json, read_json, sha256_bytes, write_json

LABELS_FILE = "labels.json"
_RESUME = "The labels so far are kept; label again to resume."

Labeler = Callable[[Mapping[str, Any]], str]
"""Maps one entry of ``examples.json`` to a label. The entry's texts come from the prompts; treat them as data, not instructions."""


@dataclass(frozen=True, repr=False)
class Labels(Displayed):
    """The labels of one labeler.

    Attributes:
        labeler: Name of the labeler.
        labels: Label by feature.
        examples: By feature, the sha256 of the entry that was labelled. It shows whether the examples have changed since.
        failure: Why the labeler stopped early, in one sentence; empty when it did not.
    """

    labeler: str
    labels: dict[int, str] = field(default_factory=dict)
    examples: dict[int, str] = field(default_factory=dict)
    failure: str = ""

    def _in_short(self) -> str:
        return f"{len(self.labels)} labels by {self.labeler}" + (f"; {self.failure}" if self.failure else "")

    def save(self, path: Path | str) -> None:
        """Write JSON; `Labels.load` reads it back."""
        rows = [
            {"feature": feature, "label": label, "examples_sha256": self.examples[feature]}
            for feature, label in sorted(self.labels.items())
        ]
        write_json(path, {"labeler": self.labeler, "failure": self.failure, "labels": rows})

    @classmethod
    def load(cls, path: Path | str) -> "Labels":
        """Read what `save` wrote; `ArtifactError` where the file is missing or is something else."""
        data = read_json(path)
        try:
            labels = {int(row["feature"]): str(row["label"]) for row in data["labels"]}
            examples = {int(row["feature"]): str(row["examples_sha256"]) for row in data["labels"]}
            return cls(str(data["labeler"]), labels, examples, str(data["failure"]))
        except (KeyError, TypeError, ValueError):
            raise ArtifactError(f"{path} does not hold labels; delete it, or give another file.") from None


def label_features(
    examples: Iterable[Mapping[str, Any]], labeler: Labeler, *, name: str | None = None, out: Path | str | None = None
) -> Labels:
    """Label every feature.

    Args:
        examples: Entries of ``examples.json``, or of `mechprobe.feature_examples`.
        labeler: Called once per entry, in order. It returns a label with at least one visible character.
        name: Name of the labeler; the name of the function when None.
        out: File that is written after every label. Labels that it holds already, by the same labeler for the same examples,
            are kept, so an interrupted labelling resumes.

    Raises:
        LabelError: The labeler raised an error, or returned no text. The labels so far are in the error's ``labels`` and in
            ``out``, which also has the reason.
        ArtifactError: ``out`` holds something else, or labels of another labeler.
    """
    name = name or str(getattr(labeler, "__qualname__", type(labeler).__qualname__))
    labels = _begun(Path(out), name) if out is not None else Labels(name)

    def save(labels: Labels) -> None:
        if out is not None:
            labels.save(out)

    for entry in examples:
        feature, digest = int(entry["feature"]), entry_digest(entry)
        if labels.examples.get(feature) == digest:
            continue
        try:
            label = _asked(labeler, entry, name)
        except LabelError as error:
            labels = replace(labels, failure=str(error))
            save(labels)
            raise LabelError(str(error), labels) from error.__cause__
        labels.labels[feature], labels.examples[feature] = label, digest
        save(labels)
    save(labels)
    return labels


def entry_digest(entry: Mapping[str, Any]) -> str:
    """sha256 of an entry of ``examples.json``."""
    return sha256_bytes(dump_json(dict(entry)).encode())


def _asked(labeler: Labeler, entry: Mapping[str, Any], name: str) -> str:
    feature = entry["feature"]
    try:
        label = labeler(entry)
    except Exception as error:  # the labeler is the user's code and may raise anything
        reason = str(error).strip().splitlines()
        said = f"{type(error).__name__}: {reason[0] if reason else 'no reason given'}"
        raise LabelError(f"Labeler '{name}' failed on feature {feature} ({said[:200]}). {_RESUME}") from error
    if not isinstance(label, str) or not label.strip():
        given = f"{type(label).__name__} {label!r:.60}"
        raise LabelError(f"Labeler '{name}' must return text, but for feature {feature} it returned {given}. {_RESUME}")
    return label.strip()


def _begun(path: Path, name: str) -> Labels:
    """The labels that a file already holds."""
    found = Labels.load(path) if path.exists() else Labels(name)
    if found.labeler != name:
        raise ArtifactError(
            f"{path} holds labels of '{found.labeler}', not of '{name}'; delete it, or give another file or another name."
        )
    return replace(found, failure="")
