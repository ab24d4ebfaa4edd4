"""The stage ``dictionary-seeds``: the comparison of dictionaries that other stages trained and judged."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mechprobe.dictionary.result import Quality
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.interventions.dictionaries.comparison import Judged, JudgedDictionary, compare
from mechprobe.interventions.dictionaries.result import SEEDS_FILE, DictionarySeeds
from mechprobe.interventions.result import InterventionResults
from mechprobe.progress import activity
from mechprobe.stage_folder import Stage, read_manifest
from sae_training import Crosscoder


class DictionaryFolders(NamedTuple):
    """Where the stages of one dictionary are. ``interventions`` is None, and ``note`` says why, where it has no set."""

    seed: int
    crosscoder: Path
    features: Path
    interventions: Path | None
    note: str = ""

    def inputs(self) -> dict[str, Path]:
        """The folders by name."""
        found = {"crosscoder": self.crosscoder, "features": self.features, "interventions": self.interventions}
        return {f"{name}-{self.seed}": path for name, path in found.items() if path is not None}

    def load(self) -> JudgedDictionary:
        """Read the dictionary, its table and its results."""
        return JudgedDictionary(
            self.seed,
            Crosscoder.load(self.crosscoder),
            FeatureTable.load(self.features),
            Quality.load(self.features / "quality.json").trusted,
            Judged(InterventionResults.load(self.interventions) if self.interventions else None, self.note),
        )


def compare_dictionaries(
    folders: Sequence[DictionaryFolders], out: Path | str, *, min_cosine: float, force: bool = False
) -> DictionarySeeds:
    """Match the sets of several dictionaries with that of the first, and compare their verdicts.

    The folder is a view of finished stages: it is made again where they, or their number, have changed.

    Args:
        folders: The stages of every dictionary, at least two; the first has interventions.
        out: Stage folder for ``dictionary_seeds.json`` and the manifest.
        min_cosine: Smallest cosine of the decoders at which a feature counts as found again.
        force: Make a finished stage again.

    Raises:
        ArtifactError: A stage is not finished, or ``out`` holds another stage.
    """
    settings = {
        "min_cosine": min_cosine,
        "seeds": [each.seed for each in folders],
        "notes": [each.note for each in folders],
    }
    inputs = {name: path for each in folders for name, path in each.inputs().items()}
    models = read_manifest(folders[0].crosscoder)["models"]
    with Stage.open(
        out, name="dictionary-seeds", config=settings, inputs=inputs, models=models, force=force, remake=True
    ) as stage:
        if not stage.done:
            with activity("matching the dictionaries"):
                found = compare(folders[0].load(), (each.load() for each in folders[1:]), min_cosine=min_cosine)
            found.save(stage.folder / SEEDS_FILE)
            stage.finish(
                outputs=[SEEDS_FILE],
                counts={"dictionaries": len(folders), "features": len(found.features)},
                results={"sentence": found.sentence},
            )
    return DictionarySeeds.load(out)
