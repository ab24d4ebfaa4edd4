"""The phases of building a trained lab: items, base, post-trainings. A lab says what differs by overriding the abstract methods.

Every model has its own stage folder, so that an interrupted build resumes at the first unfinished phase. A phase restarts from
its beginning and produces the same bytes.
"""

import json
import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from posixpath import normpath
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

from mechprobe.errors import ArtifactError, ModelError
from mechprobe.evals.skills import SkillItem
from mechprobe.files import dump_json
from mechprobe.lab.items import Document
from mechprobe.lab.recipe import GrpoConfig, LabRecipe, SftConfig, TrainingConfig
from mechprobe.progress import progress
from mechprobe.records import Sample, write_jsonl
from mechprobe.stage_folder import MANIFEST, Stage, read_manifest

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

    from mechprobe.lab.weights import Frozen

_log = logging.getLogger(__name__)


@runtime_checkable
class Items(Protocol):
    """Item sets that every lab has."""

    @property
    def eval(self) -> Mapping[str, list[SkillItem]]:
        """Held-out items by skill."""
        ...

    @property
    def corpus(self) -> list[tuple[str, str, str]]:
        """Id, skill and prompt of the prompts for the activation cache."""
        ...


RecipeType = TypeVar("RecipeType", bound=LabRecipe)
ItemsType = TypeVar("ItemsType", bound=Items)


class Lab(ABC, Generic[RecipeType, ItemsType]):
    """State that the phases of a build share, and the phases."""

    shared_settings: tuple[str, ...]
    """Settings of the recipe on which every phase depends."""
    base_settings: tuple[str, ...]
    """Further settings of the recipe on which the base depends."""
    arm_settings: tuple[str, ...]
    """Further settings of the recipe on which every arm depends."""

    def __init__(
        self, recipe: RecipeType, items: ItemsType, folder: Path, seed: int, tokenizer: "PreTrainedTokenizerFast"
    ) -> None:
        self.recipe, self.items, self.folder, self.seed, self.tokenizer = recipe, items, folder, seed, tokenizer

    @property
    @abstractmethod
    def training(self) -> TrainingConfig:
        """Settings of the pre-training."""

    @abstractmethod
    def arms(self) -> list[str]:
        """Names of the post-trainings of the recipe."""

    @abstractmethod
    def documents(self, seed: int) -> Iterator[Document]:
        """Infinite stream of pre-training documents."""

    @abstractmethod
    def check_base(self, model: "LlamaForCausalLM") -> dict[str, Any]:
        """Measurements of a base, and under ``gates`` whether it passed."""

    @abstractmethod
    def trainer(self, arm: str) -> tuple[Callable[..., Any], list[SkillItem], GrpoConfig | SftConfig]:
        """The training function of an arm, its items and its settings."""

    @abstractmethod
    def frozen(self) -> "Frozen":
        """Which parameters every arm keeps fixed."""

    @abstractmethod
    def results(self) -> dict[str, Any]:
        """Measurements of the finished lab."""

    @abstractmethod
    def run_files(self) -> dict[str, str]:
        """Names and texts of the configurations for ``mechprobe run``."""

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """Numbers of items of each kind."""

    def _settings(self, *names: str) -> dict[str, Any]:
        """The part of the recipe on which a phase depends."""
        return self.recipe.model_dump(mode="json", include={*self.shared_settings, *names})

    def write_items(self) -> None:
        """Write the held-out items and the corpus prompts."""
        samples = [
            Sample(item.id, skill, item.prompt, item.answer).to_json()
            for skill, questions in self.items.eval.items()
            for item in questions
        ]
        write_jsonl(self.folder / "tasks.jsonl", samples)
        rows = ({"id": i, "task": skill, "prompt": prompt} for i, skill, prompt in self.items.corpus)
        write_jsonl(self.folder / "prompts.jsonl", rows)

    def make_base(self, other: Path | None = None) -> None:
        """Pre-train until a seed passes the gates, and record every attempt; or copy the base of another lab."""
        config = {**self._settings(*self.base_settings), "first_seed": self.seed}
        if other is not None:
            self._copy_base(other, config)
        with Stage.open(self.folder / "base", name="lab-base", config=config) as stage:
            if stage.done:
                return
            attempts: list[dict[str, Any]] = []
            last = self.seed + self.training.max_attempts - 1
            for seed in range(self.seed, last + 1):
                attempt, files = self._attempt(seed)
                attempts.append(attempt)
                if attempt["gates"]["passed"] or not self.recipe.enforce_gates:
                    stage.finish(outputs=files, results={"attempts": attempts}, seed=seed)
                    return
                _log.warning("pre-training seed %d fails its gates: %s", seed, attempt["gates"]["checks"])
        raise ModelError(
            f"No pre-training seed from {self.seed} to {last} passed the gates of recipe {self.recipe.name}; "
            "give another --seed."
        )

    def _copy_base(self, other: Path, config: Mapping[str, Any]) -> None:
        """Copy a finished base with the settings of this lab."""
        place = self.folder / "base"
        if (place / MANIFEST).is_file():
            return
        found = read_manifest(other)
        if found["stage"] != "lab-base" or found["config"] != json.loads(dump_json(config)):
            raise ArtifactError(
                f"{other} does not hold the base of recipe {self.recipe.name} with seed {self.seed}; "
                "give another --base, or none."
            )
        copy = self.folder / "base.copying"
        for left in (copy, place):
            shutil.rmtree(left, ignore_errors=True)
        shutil.copytree(other, copy)
        copy.rename(place)

    def _attempt(self, seed: int) -> tuple[dict[str, Any], list[str]]:
        """Pre-train one base, save it, and check its gates."""
        from mechprobe.lab.pretrain import new_model, pretrain
        from mechprobe.lab.weights import load_model, save_model, threads
        from mechprobe.random_state import isolated_random_state

        recipe = self.recipe
        title = f"pre-training (seed {seed})"
        with (
            threads(recipe.n_threads),
            isolated_random_state(seed),
            progress(self.training.steps, title, unit="steps") as advance,
        ):
            model = new_model(recipe.model, self.tokenizer)
            stream = self.documents(seed)
            curve = pretrain(model, self.tokenizer, stream, self.training, lambda loss: advance(1, loss=loss))
        files = save_model(model, self.tokenizer, self.folder / "base")
        model = load_model(self.folder / "base").eval()
        return {"seed": seed, **self.check_base(model), "curve": curve}, files

    def make_arm(self, arm: str) -> None:
        """Post-train one arm with its checkpoints."""
        from mechprobe.lab.posttrain import Watch, n_steps
        from mechprobe.lab.weights import save_model, threads

        base, seed = self.folder / "base", read_manifest(self.folder / "base")["seed"]
        config = {**self._settings(arm, *self.arm_settings), "seed": seed}
        with Stage.open(self.folder / arm, name=f"lab-{arm}", config=config, inputs={"base": base}) as stage:
            if stage.done:
                return
            checkpoints = self.folder / "checkpoints" / arm
            shutil.rmtree(checkpoints, ignore_errors=True)
            kept: list[str] = []

            def keep(model: Any, step: int) -> None:
                name = f"step_{step:06d}"
                files = save_model(model, self.tokenizer, checkpoints / name)
                kept.extend(f"../checkpoints/{arm}/{name}/{file}" for file in files)

            train, items, settings = self.trainer(arm)
            steps = n_steps(settings, len(items))
            with threads(self.recipe.n_threads), progress(steps, arm, unit="steps") as advance:
                watch = Watch(checkpoints=settings.checkpoints, keep=keep, on_step=lambda: advance(1))
                model = train(base, self.tokenizer, items, settings, seed=seed, watch=watch, frozen=self.frozen())
            files = save_model(model, self.tokenizer, self.folder / arm)
            stage.finish(outputs=[*files, *kept], results={"curve": watch.curve, "steps": steps}, seed=seed)

    def outputs(self) -> list[str]:
        """Files whose hashes are in the manifest; run.toml is not among them, so that a user may edit it."""
        names = ["tasks.jsonl", "prompts.jsonl"]
        for arm in ("base", *self.arms()):
            names += [normpath(f"{arm}/{name}") for name in read_manifest(self.folder / arm)["outputs"]]
        return names
