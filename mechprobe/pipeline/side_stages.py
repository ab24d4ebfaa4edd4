"""Stages beside the chain of ``mechprobe run``, and what all stages of a run share."""

from pathlib import Path
from typing import Any, TypeVar

from mechprobe.dictionary.baselines.result import Baselines
from mechprobe.dictionary.baselines.stage import measure_baselines
from mechprobe.drift.divergence.result import DivergenceResult
from mechprobe.drift.divergence.stage import divergence
from mechprobe.drift.probe.config import ProbeConfig
from mechprobe.drift.probe.result import ProbeResult
from mechprobe.drift.probe.stage import probe
from mechprobe.drift.weights.result import WeightsResult
from mechprobe.drift.weights.stage import weight_statistics
from mechprobe.dynamics.logprobs.result import LogprobsResult
from mechprobe.dynamics.logprobs.stage import log_probs
from mechprobe.dynamics.logprobs.work import LogprobsWork
from mechprobe.dynamics.result import Dynamics
from mechprobe.dynamics.stage import dynamics
from mechprobe.dynamics.swept import holds_checkpoints
from mechprobe.emergence.arms import with_checkpoints, with_recorded
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.emergence.result import Emergence
from mechprobe.emergence.stage import emergence
from mechprobe.models.family import ModelFamily
from mechprobe.progress import tell_once
from mechprobe.run_config import RunConfig
from mechprobe.run_layout import RunLayout
from mechprobe.stage_folder import MANIFEST, Stage
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
            tell_once(self._family.runs_as)
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

    @property
    def compared(self) -> ModelFamily:
        """The models that `drift` compares: those of the run, of which the store is made, and its checkpoints."""
        models = with_checkpoints(self.config.models, self.config.drift.checkpoints)
        if models == self.config.models:
            return self.family
        return self.config.model_copy(update={"models": models}).family(trust_remote_code=self.trust_remote_code)

    def drift(self) -> DivergenceResult:
        """Compare the distributions of every model with those of base on the store's tokens. It is not part of `mechprobe run`."""
        return divergence(
            self.compared, self.layout.cache, out=self.layout.drift, config=self.config.drift, force=self.force
        )

    @property
    def scores(self) -> Path:
        """What `dynamics` reads: the sweep where it is finished and holds checkpoints, else the outcomes of evaluate."""
        given = dict(self.layout.elsewhere)
        swept = "sweep" in given or ("evals" not in given and holds_checkpoints(self.layout.sweep))
        return self.layout.sweep if swept else self.layout.evals

    def dynamics(self) -> Dynamics:
        """Classify the scores of checkpoints on every task or benchmark: dips and recoveries. It is not part of `mechprobe run`."""
        return dynamics(
            self.scores,
            out=self.layout.dynamics,
            work=self.layout.benchmarks,
            config=self.config.dynamics,
            arms=self.dated(self.config.emergence),
            force=self.force,
        )

    def logprobs(self) -> LogprobsResult:
        """Score the tokens of fixed traces under every model. It is not part of `mechprobe run`."""
        return log_probs(
            self.family,
            out=self.layout.logprobs,
            config=self.config.logprobs,
            **self.logprobs_inputs(),
            force=self.force,
        )

    def plan_logprobs(self) -> tuple[list[str], dict[str, Any]]:
        """Models, traces and token classes as lines and JSON values. What `logprobs` would refuse before it loads a model is refused."""
        work = LogprobsWork.of(self.family, config=self.config.logprobs, **self.logprobs_inputs())
        Stage.check(self.layout.logprobs, **work.stage, force=self.force)
        return work.plan()

    def logprobs_inputs(self) -> dict[str, Any]:
        """What `log_probs` reads besides models and settings: the file of traces or the outcomes, the outcomes if there are any, arms."""
        evals = self.layout.evals if (self.layout.evals / MANIFEST).is_file() else None
        traces = None if self.config.logprobs.traces.file else self.layout.evals
        return {"traces": traces, "generated": evals, "arms": self.dated(self.config.emergence)}

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
