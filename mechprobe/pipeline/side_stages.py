"""Stages beside the chain of ``mechprobe run``, and what all stages of a run share."""

from pathlib import Path
from typing import TypeVar

from mechprobe.dictionary.baselines.result import Baselines
from mechprobe.dictionary.baselines.stage import measure_baselines
from mechprobe.drift.divergence.result import DivergenceResult
from mechprobe.drift.divergence.stage import divergence
from mechprobe.drift.probe.config import ProbeConfig
from mechprobe.drift.probe.result import ProbeResult
from mechprobe.drift.probe.stage import probe
from mechprobe.drift.weights.result import WeightsResult
from mechprobe.drift.weights.stage import weight_statistics
from mechprobe.dynamics.result import Dynamics
from mechprobe.dynamics.stage import dynamics
from mechprobe.emergence.arms import with_recorded
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.emergence.result import Emergence
from mechprobe.emergence.stage import emergence
from mechprobe.models.family import ModelFamily
from mechprobe.run_config import RunConfig
from mechprobe.run_layout import RunLayout
from mechprobe.stage_folder import MANIFEST
from mechprobe.sweep.config import SweepConfig
from mechprobe.sweep.result import SweepResults
from mechprobe.sweep.stage import sweep

Dated = TypeVar("Dated", EmergenceConfig, ProbeConfig, SweepConfig)
"""Settings with steps of models."""


class SideStages:
    """Settings, folders and models of a run, and the stages that are no part of the chain."""

    def __init__(
        self, config: RunConfig, folder: Path | str | RunLayout, *, force: bool = False, trust_remote_code: bool = False
    ) -> None:
        self.config = config
        self.layout = folder if isinstance(folder, RunLayout) else RunLayout(Path(folder))
        self.force = force
        self.trust_remote_code = trust_remote_code
        self._family: ModelFamily | None = None

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.layout.folder

    @property
    def family(self) -> ModelFamily:
        """All models of the run."""
        if self._family is None:
            self._family = self.config.family(trust_remote_code=self.trust_remote_code)
        return self._family

    def dated(self, settings: Dated) -> Dated:
        """Settings with the steps that the models' folders record, for models without one; steps that are given stay."""
        known = with_recorded(settings.final_steps, self.config.models.items(), settings.base)
        return settings.replace(final_steps=known)

    def baselines(self) -> Baselines:
        """Train an SAE of each model for comparison. It is not part of `mechprobe run`."""
        return measure_baselines(
            self.layout.crosscoder,
            self.layout.cache,
            out=self.layout.baselines,
            family=self.family if self.config.models else None,
            config=self.config.baselines,
            quality=self.config.features,
            device=self.config.device,
            force=self.force,
        )

    def emergence(self) -> Emergence:
        """Follow features over the checkpoints among the models. It is not part of `mechprobe run`."""
        return emergence(
            self.family,
            self.config.prompt_source(),
            out=self.layout.emergence,
            work=self.layout.checkpoints,
            config=self.config.emergence,
            cache=self.config.cache,
            training=self.config.train_sae,
            force=self.force,
        )

    def sweep(self) -> SweepResults:
        """Evaluate every model on every benchmark. It is not part of `mechprobe run`."""
        return sweep(
            self.family if self.config.models else None,
            out=self.layout.sweep,
            work=self.layout.benchmarks,
            config=self.dated(self.config.sweep),
            text=self.config.text,
            think=self.config.tasks.think,
            force=self.force,
        )

    def drift(self) -> DivergenceResult:
        """Compare the distributions of every model with those of base on the store's tokens. It is not part of `mechprobe run`."""
        return divergence(
            self.family, self.layout.cache, out=self.layout.drift, config=self.config.drift, force=self.force
        )

    def dynamics(self) -> Dynamics:
        """Classify the scores of checkpoints on every task: dips and recoveries. It is not part of `mechprobe run`."""
        return dynamics(
            self.layout.evals,
            out=self.layout.dynamics,
            config=self.config.dynamics,
            arms=self.dated(self.config.emergence),
            force=self.force,
        )

    def probe(self) -> ProbeResult:
        """Follow skill profiles over the checkpoints among the models. It is not part of `mechprobe run`."""
        return probe(
            self.layout.evals,
            self.family if self.config.models else None,
            out=self.layout.probe,
            config=self.dated(self.config.probe),
            **self.probe_inputs(),
            force=self.force,
        )

    def probe_inputs(self) -> dict[str, Path | str | None]:
        """What `probe` reads besides outcomes and models: the tasks file, and those of three stages that are finished."""
        folders = {"crosscoder": self.layout.crosscoder, "drift": self.layout.drift, "weights": self.layout.weights}
        found = {name: folder if (folder / MANIFEST).is_file() else None for name, folder in folders.items()}
        return {"tasks_file": self.config.tasks.file or None, **found}

    def weights(self) -> WeightsResult:
        """Compare the weights of every model with base's, from their files. It is not part of `mechprobe run`."""
        self.config.require_models()
        return weight_statistics(
            self.config.models, out=self.layout.weights, config=self.config.weights, force=self.force
        )
