"""Every path inside a run folder."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

RUN_FILE = "run.json"
"""The settings of the run, as they were given."""


class StagePlace(NamedTuple):
    """A stage of the chain: its name, its folder inside the run, and the command that makes it."""

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


@dataclass(frozen=True)
class RunLayout:
    """Where the stages of a run are. A stage that lies elsewhere has its folder in ``elsewhere``.

    Example:
        >>> layout = RunLayout(Path("runs/lab")).placed(cache=Path("big/cache"))
        >>> layout.cache.as_posix(), layout.results.as_posix()
        ('big/cache', 'runs/lab/interventions/results.json')
    """

    folder: Path
    elsewhere: tuple[tuple[str, Path], ...] = ()

    def placed(self, **folders: Path | None) -> "RunLayout":
        """The layout with some stage folders elsewhere, by attribute name; None leaves a stage inside the run."""
        given = tuple((name, Path(path)) for name, path in folders.items() if path is not None)
        return replace(self, elsewhere=(*self.elsewhere, *given))

    def _stage(self, name: str) -> Path:
        return dict(self.elsewhere).get(name, self.folder / name)

    @property
    def run_file(self) -> Path:
        """Settings of the run."""
        return self.folder / RUN_FILE

    @property
    def labels(self) -> Path:
        """Labels of features."""
        return self.folder / "labels.json"

    @property
    def localize(self) -> Path:
        """Stage folder of ``mechprobe localize``."""
        return self._stage("localize")

    @property
    def cache(self) -> Path:
        """Stage folder of ``mechprobe cache``: the activation store."""
        return self._stage("cache")

    @property
    def crosscoder(self) -> Path:
        """Stage folder of ``mechprobe train-sae``."""
        return self._stage("crosscoder")

    @property
    def features(self) -> Path:
        """Stage folder of ``mechprobe features``."""
        return self._stage("features")

    @property
    def nulls(self) -> Path:
        """One folder per null, beside the features."""
        return self.features.absolute().parent / "nulls"

    @property
    def evals(self) -> Path:
        """Stage folder of ``mechprobe evaluate``."""
        return self._stage("evals")

    @property
    def selection(self) -> Path:
        """Stage folder of ``mechprobe select``."""
        return self._stage("selection")

    @property
    def interventions(self) -> Path:
        """Stage folder of ``mechprobe intervene``."""
        return self._stage("interventions")

    @property
    def harness(self) -> Path:
        """Stage folder of ``mechprobe intervene --task``."""
        return self._stage("harness")

    @property
    def baselines(self) -> Path:
        """Stage folder of ``mechprobe baselines``."""
        return self._stage("baselines")

    @property
    def emergence(self) -> Path:
        """Stage folder of ``mechprobe emergence``."""
        return self._stage("emergence")

    @property
    def checkpoints(self) -> Path:
        """Store and dictionaries that emergence makes."""
        return self._stage("checkpoints")

    @property
    def examples(self) -> Path:
        """Contexts of the first selected features."""
        return self._stage("examples")

    @property
    def chosen_examples(self) -> Path:
        """Contexts of features that the user named."""
        return self._stage("examples_chosen")

    @property
    def report(self) -> Path:
        """Stage folder of ``mechprobe report``."""
        return self._stage("report")

    @property
    def page(self) -> Path:
        """The report page."""
        return self.report / "index.html"

    @property
    def report_json(self) -> Path:
        """The content of the report as JSON."""
        return self.report / "report.json"

    @property
    def ceilings(self) -> Path:
        """Result of localize."""
        return self.localize / "ceilings.json"

    @property
    def training_log(self) -> Path:
        """Metrics of the training, one JSON object per line."""
        return self.crosscoder / "metrics.jsonl"

    @property
    def feature_summary(self) -> Path:
        """Class counts of the feature table."""
        return self.features / "summary.json"

    @property
    def quality(self) -> Path:
        """Quality gate of the crosscoder."""
        return self.features / "quality.json"

    @property
    def accuracy(self) -> Path:
        """Result of evaluate."""
        return self.evals / "summary.json"

    @property
    def selected(self) -> Path:
        """Result of select."""
        return self.selection / "selection.json"

    @property
    def results(self) -> Path:
        """Result of intervene."""
        return self.interventions / "results.json"
