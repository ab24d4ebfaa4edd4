"""Every path inside a run folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

RUN_FILE = "run.json"
"""The settings of the run, as they were given."""


class StagePlace(NamedTuple):
    """A stage of the chain: its name and its folder inside the run."""

    name: str
    folder: str

    @property
    def command(self) -> str:
        """The command line that makes the stage."""
        return f"mechprobe {self.name}"


CHAIN = (
    StagePlace("localize", "localize"),
    StagePlace("cache", "cache"),
    StagePlace("train-sae", "crosscoder"),
    StagePlace("features", "features"),
    StagePlace("evaluate", "evals"),
    StagePlace("select", "selection"),
    StagePlace("intervene", "interventions"),
    StagePlace("report", "report"),
)
"""The stages of ``mechprobe run``, in order."""

_FOLDERS = {place.folder: place.folder for place in CHAIN} | {
    "harness": "harness",  # intervene --task
    "baselines": "baselines",
    "emergence": "emergence",
    "drift": "drift",
    "dynamics": "dynamics",
    "logprobs": "logprobs",
    "weights": "weights",
    "probe": "probe",
    "sweep": "sweep",
    "benchmarks": "benchmarks",  # cells of the sweep, a stage folder each
    "checkpoints": "checkpoints",  # store and dictionaries of emergence
    "dictionaries": "dictionaries",  # run --dictionary-seeds: a run folder per further dictionary
    "examples": "examples",  # contexts of the first selected features
    "chosen_examples": "examples_chosen",  # contexts of features that the user named
}
_FILES = {
    "ceilings": ("localize", "ceilings.json"),
    "training_log": ("crosscoder", "metrics.jsonl"),
    "feature_summary": ("features", "summary.json"),
    "quality": ("features", "quality.json"),
    "accuracy": ("evals", "summary.json"),
    "selected": ("selection", "selection.json"),
    "results": ("interventions", "results.json"),
    "dictionary_seeds": ("dictionaries", "compared/dictionary_seeds.json"),
    "page": ("report", "index.html"),
    "report_json": ("report", "report.json"),
    "run_file": ("folder", RUN_FILE),
    "labels": ("folder", "labels.json"),
}


@dataclass(frozen=True)
class RunLayout:
    """Where the stages of a run are. ``elsewhere`` holds the folders of stages outside the run folder.

    Stage folders are attributes named as the folders (``cache``, ``crosscoder``), and result files by their content
    (``ceilings``, ``quality``, ``results``); the tables of this module list them.

    Example:
        >>> layout = RunLayout(Path("runs/lab")).placed(cache=Path("big/cache"))
        >>> layout.cache.as_posix(), layout.results.as_posix()
        ('big/cache', 'runs/lab/interventions/results.json')
    """

    folder: Path
    elsewhere: tuple[tuple[str, Path], ...] = ()

    def placed(self, **folders: Path | None) -> "RunLayout":
        """The layout with some stage folders elsewhere, by attribute name; None and its own place leave a stage inside the run."""
        given = tuple(
            (name, Path(path))
            for name, path in folders.items()
            if path is not None and Path(path).absolute() != (self.folder / _FOLDERS[name]).absolute()
        )
        return replace(self, elsewhere=(*self.elsewhere, *given))

    def __getattr__(self, name: str) -> Path:
        if name in _FOLDERS:
            return dict(self.elsewhere).get(name, self.folder / _FOLDERS[name])
        if name in _FILES:
            stage, file = _FILES[name]
            return getattr(self, stage) / file
        raise AttributeError(f"RunLayout has no path '{name}'; it has {', '.join([*_FOLDERS, *_FILES])}.")

    @property
    def nulls(self) -> Path:
        """One folder per null, beside the features."""
        return self.features.absolute().parent / "nulls"


def holds_stages(folder: Path) -> bool:
    """Whether a folder holds at least one stage of the chain."""
    return any((folder / place.folder).is_dir() for place in CHAIN)
