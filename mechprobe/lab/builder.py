"""Building a lab: item sets, base, three post-trainings, measurements and manifest.

Every model has its own stage folder, so that an interrupted build resumes at the first unfinished phase. A phase restarts from
its beginning and produces the same bytes.
"""

import json
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from posixpath import normpath
from typing import TYPE_CHECKING, Any

from mechprobe.errors import ArtifactError, ModelError
from mechprobe.evals.skills import SkillItem
from mechprobe.files import dump_json, write_text
from mechprobe.lab.items import ItemSets, build_items, documents
from mechprobe.lab.recipe import GrpoConfig, Recipe, SftConfig, get_recipe
from mechprobe.progress import progress
from mechprobe.records import Sample, write_jsonl
from mechprobe.stage_folder import MANIFEST, Stage, read_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_log = logging.getLogger(__name__)


def build(
    recipe: str | Recipe,
    out: Path | str,
    *,
    seed: int = 0,
    scale: str = "full",
    base: Path | str | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Build a lab in a folder and return its manifest.

    Args:
        recipe: A recipe or its name.
        out: Folder of the lab.
        seed: First pre-training seed. If a gate after pre-training fails, the next seed is tried.
        scale: ``full``, or ``small`` for the same lab in seconds, whose models know nothing.
        base: Base folder of another lab with the same pre-training, which is copied instead of training it again.
        force: Whether to empty the folder of an earlier lab and start again.

    Raises:
        ConfigError: The recipe or the scale is unknown.
        ArtifactError: The folder holds other work, or ``base`` was pre-trained with other settings.
        ModelError: No seed passed the gates after pre-training.
    """
    plan = get_recipe(recipe, scale) if isinstance(recipe, str) else recipe
    config = {"recipe": plan.model_dump(mode="json"), "seed": seed}
    with Stage.open(Path(out), name="lab", config=config, force=force) as stage:
        return _build(stage, plan, seed, base) if stage.manifest is None else stage.manifest


def _build(stage: Stage, plan: Recipe, seed: int, base: Path | str | None) -> dict[str, Any]:
    """Run the unfinished phases and write the manifest."""
    from mechprobe.random_state import isolated_random_state

    with isolated_random_state(seed):
        from mechprobe.lab.results import measure_lab
        from mechprobe.lab.run_config import run_config
        from mechprobe.lab.tokenizer import build_tokenizer

        lab = _Lab(plan, stage.folder, seed, build_items(plan), build_tokenizer())
        lab.write_items()
        lab.make_base(None if base is None else Path(base))
        for arm in lab.arms():
            lab.make_arm(arm)
        results = measure_lab(plan, stage.folder, lab.items)
        write_text(stage.folder / "run.toml", run_config(plan))
    n_posttrain, n_corpus = len(lab.items.posttrain), len(lab.items.corpus)
    counts = {"eval_items_per_skill": plan.n_eval, "posttrain_items": n_posttrain, "corpus_prompts": n_corpus}
    used = results["pretraining"]["seed"]
    return stage.finish(outputs=lab.outputs(), results=results, seed=used, counts=counts)


@dataclass
class _Lab:
    """State that the phases of a build share."""

    recipe: Recipe
    folder: Path
    seed: int
    items: ItemSets
    tokenizer: "PreTrainedTokenizerFast"

    def arms(self) -> list[str]:
        """Names of the post-trainings of the recipe."""
        return ["sft", *(["sft_instyle"] if self.recipe.sft_instyle else []), "rl"]

    def _settings(self, *names: str) -> dict[str, Any]:
        """The part of the recipe on which a phase depends."""
        shared = ("rendering", "n_eval", "n_threads")
        return self.recipe.model_dump(mode="json", include={*shared, *names})

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
        config = {**self._settings("model", "pretrain", "enforce_gates"), "first_seed": self.seed}
        if other is not None:
            self._copy_base(other, config)
        with Stage.open(self.folder / "base", name="lab-base", config=config) as stage:
            if stage.done:
                return
            attempts: list[dict[str, Any]] = []
            last = self.seed + self.recipe.pretrain.max_attempts - 1
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
        from mechprobe.lab.measure import measure, pretraining_gates
        from mechprobe.lab.pretrain import new_model, pretrain
        from mechprobe.lab.weights import load_model, save_model, threads
        from mechprobe.random_state import isolated_random_state

        recipe = self.recipe
        stream = documents(recipe.pretrain, rendering=recipe.rendering, withheld=self.items.withheld, seed=seed)
        title = f"pre-training (seed {seed})"
        with (
            threads(recipe.n_threads),
            isolated_random_state(seed),
            progress(recipe.pretrain.steps, title, unit="steps") as advance,
        ):
            model = new_model(recipe.model, self.tokenizer)
            curve = pretrain(model, self.tokenizer, stream, recipe.pretrain, lambda loss: advance(1, loss=loss))
        files = save_model(model, self.tokenizer, self.folder / "base")
        model = load_model(self.folder / "base").eval()
        measured = [
            measure(model, self.tokenizer, self.items.eval, rendering=recipe.rendering, forced=forced)
            for forced in (False, True)
        ]
        direct, forced = ({s: m.to_json() for s, m in result.items()} for result in measured)
        gates = pretraining_gates(*measured)
        return {"seed": seed, "gates": gates, "direct": direct, "forced_marker": forced, "curve": curve}, files

    def make_arm(self, arm: str) -> None:
        """Post-train one arm with its checkpoints."""
        from mechprobe.lab.posttrain import Watch
        from mechprobe.lab.weights import save_model, threads

        base, seed = self.folder / "base", read_manifest(self.folder / "base")["seed"]
        config = {**self._settings(arm, "n_posttrain", "trained_parts"), "seed": seed}
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

            train, items, settings, steps = self._trainer(arm)
            frozen = self.recipe.head_is_frozen
            with threads(self.recipe.n_threads), progress(steps, arm, unit="steps") as advance:
                watch = Watch(checkpoints=settings.checkpoints, keep=keep, on_step=lambda: advance(1))
                model = train(base, self.tokenizer, items, settings, seed=seed, watch=watch, freeze_head=frozen)
            files = save_model(model, self.tokenizer, self.folder / arm)
            stage.finish(outputs=[*files, *kept], results={"curve": watch.curve, "steps": steps}, seed=seed)

    def _trainer(self, arm: str) -> tuple[Callable[..., Any], list[SkillItem], GrpoConfig | SftConfig, int]:
        """Return the training function of an arm, its items and settings, and its number of steps."""
        from mechprobe.lab.posttrain import n_sft_steps, train_grpo, train_sft

        if arm == "rl":
            return train_grpo, self.items.posttrain, self.recipe.rl, self.recipe.rl.steps
        config = self.recipe.sft if arm == "sft" else self.recipe.sft_instyle
        assert config is not None, "arms() returns only arms of the recipe"
        traces = self.items.posttrain_off_policy if config.style == "off-policy" else self.items.posttrain
        return train_sft, traces, config, n_sft_steps(len(traces), config)

    def outputs(self) -> list[str]:
        """Files whose hashes are in the manifest; run.toml is not among them, so that a user may edit it."""
        names = ["tasks.jsonl", "prompts.jsonl"]
        for arm in ("base", *self.arms()):
            names += [normpath(f"{arm}/{name}") for name in read_manifest(self.folder / arm)["outputs"]]
        return names
