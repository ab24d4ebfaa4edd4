"""The shipped lab, and the manifest of a lab as text: accuracy per model and skill, ceilings, gates and the caveat."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mechprobe.errors import ArtifactError, ConfigError
from mechprobe.evals.skills import SKILLS
from mechprobe.formatting import percent
from mechprobe.lab.mechanisms.language import FORCED, SKILLS as MECHANISMS_SKILLS
from mechprobe.stage_folder import read_manifest

_ARMS = ("base", "sft", "sft_instyle", "rl", "null")
_PLACES = (Path(__file__).resolve().parents[2] / "artifacts" / "lab", Path(__file__).resolve().parent / "shipped")
"""Folders of shipped labs: those of a checkout, and those that a wheel carries (setup.py copies them)."""


DEFAULT_LAB = "shared-marker"
RUN_FILES = {
    DEFAULT_LAB: (DEFAULT_LAB, "run.toml"),
    "own-markers": ("own-markers", "run.toml"),
    "mechanisms": ("mechanisms", "run.toml"),
    "mechanisms-null": ("mechanisms", "null.toml"),
}
"""Recipe and configuration of every lab that ``--lab`` can name."""


def shipped_run_file(lab: str) -> Path:
    """Find the configuration for ``mechprobe run`` of a shipped lab.

    Raises:
        ConfigError: No lab has that name.
        ArtifactError: This installation does not ship it.
    """
    if lab not in RUN_FILES:
        raise ConfigError(f"--lab '{lab}' is unknown; the labs are {', '.join(RUN_FILES)}.")
    recipe, file = RUN_FILES[lab]
    return shipped(recipe) / file


def shipped(recipe: str = DEFAULT_LAB) -> Path:
    """Find the folder of a shipped lab. A checkout ships three recipes, a wheel shared-marker and mechanisms.

    Raises:
        ArtifactError: This installation ships no lab of that recipe.
    """
    for place in _PLACES:
        if (place / recipe / "manifest.json").is_file():
            return place / recipe
    raise ArtifactError(
        f"This installation ships no lab of recipe '{recipe}'; "
        f"build one with `mechprobe lab build --recipe {recipe} --out DIR`."
    )


def read_lab(folder: Path | str) -> dict[str, Any]:
    """Read the manifest of a finished lab.

    Raises:
        ArtifactError: The folder does not hold a finished lab.
    """
    manifest = read_manifest(folder)
    if manifest["stage"] != "lab":
        raise ArtifactError(f"{folder} holds the stage '{manifest['stage']}', not a lab; give the folder of a lab.")
    return manifest


def summary(manifest: Mapping[str, Any]) -> str:
    """Format the whole manifest for printing."""
    results = manifest["results"]
    if "pretraining" not in results:
        return "\n\n".join([_compiled(manifest), results["caveat"]])
    tables = accuracy_table(results), _rl_against_base(results), _ceilings(results), _gates(results)
    return "\n\n".join([_heading(manifest), *tables, results["caveat"]])


def _compiled(manifest: Mapping[str, Any]) -> str:
    """Heading and accuracies of a compiled lab, which has neither pre-training nor arms."""
    accuracy, recipe = manifest["results"]["accuracy"], manifest["config"]["recipe"]
    rows = [["accuracy in %", *accuracy["base"]]]
    rows += [[name, *(percent(cell["accuracy"]) for cell in tasks.values())] for name, tasks in accuracy.items()]
    return f"Lab {recipe['name']}: rank {recipe['rank']}, seed {manifest['seed']}\n\n{_align(rows)}"


def accuracy_table(results: Mapping[str, Any]) -> str:
    """Tabulate accuracy in % with its binomial standard error; the checkpoints of an arm precede its last model."""
    accuracy = dict(results["accuracy"])
    order = sorted(accuracy, key=lambda name: (_rank(name), "@" not in name, name))
    skills = _skills(results)
    n = {skill: accuracy["base"][skill]["n"] for skill in skills}
    rows = [["model", *(f"{skill} (n={n[skill]})" for skill in skills)]]
    for name in order:
        rows.append([name, *(_percent(accuracy[name][skill]) for skill in skills)])
        if name == "base":
            rows += [
                [f"base, {name} forced", *(_percent(found[s]) for s in skills)] for name, found in _forced(results)
            ]
    title = f"Greedy accuracy in % on held-out items; post-training saw {results['trained_skill']} only"
    return title + "\n" + _align(rows)


def _forced(results: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What was forced on the base, and its accuracies."""
    if "base_marker_forced" in results:
        return [("marker", results["base_marker_forced"])]
    return [(name, results["base_forced"][name]) for name in FORCED]


def _heading(manifest: Mapping[str, Any]) -> str:
    recipe, pretraining = manifest["config"]["recipe"], manifest["results"]["pretraining"]
    tried = ", ".join(map(str, pretraining["seeds_tried"]))
    return f"Lab {recipe['name']}: pre-training seed {pretraining['seed']} (seeds tried: {tried})"


def _rl_against_base(results: Mapping[str, Any]) -> str:
    rows = [["against base", "skill", "difference", "in SE", "gained", "lost", "McNemar p"]]
    for arm in _ARMS[1:]:
        for skill in _skills(results) if arm in results["versus_base"] else ():
            found = results["versus_base"][arm][skill]
            difference, z, p = f"{100 * found['difference']:+.1f}", f"{found['z']:+.1f}", f"{found['mcnemar_p']:.1e}"
            rows.append([arm, skill, difference, z, str(found["gained"]), str(found["lost"]), p])
    return _align(rows)


def _ceilings(results: Mapping[str, Any]) -> str:
    skills = _skills(results)
    rows = [["ceilings (accuracy in %)", *skills]]
    for site, sides in results["ceilings"].items():
        for side, label in (("sufficiency", "base with rl's"), ("necessity", "rl with base's")):
            rows.append([f"{label} {site}", *(_percent(sides[side][skill]) for skill in skills)])
    return _align(rows)


def _gates(results: Mapping[str, Any]) -> str:
    gates = results["gates"]
    checks = gates["pretraining"]["checks"]
    lines = [f"gate {name}: {'passed' if passed else 'FAILED'}" for name, passed in checks.items()]
    for name, passed in gates.get("outcomes", {}).items():
        lines.append(f"outcome {name}: {'yes' if passed else 'NO'}")
    lines.append(f"sites with both ceilings: {', '.join(gates['ceilings']['sites_with_both']) or 'none'}")
    frozen = gates["frozen_parts_bit_equal"]
    if frozen is None:
        lines.append("every weight was trained, embeddings, final norm and unembedding too")
    else:
        answer = "yes" if all(frozen.values()) else "NO"
        parts = "all frozen weights" if "outcomes" in gates else "embeddings, final norm, unembedding"
        lines.append(f"{parts} equal to base in every arm: {answer}")
    return "\n".join(lines)


def _skills(results: Mapping[str, Any]) -> list[str]:
    """Return the skills in the order of their registration."""
    return [skill for skill in (*SKILLS, *MECHANISMS_SKILLS) if skill in results["accuracy"]["base"]]


def _percent(cell: Mapping[str, Any]) -> str:
    return f"{percent(cell['accuracy'], 1)} ± {percent(cell['se'], 1)}"


def _rank(name: str) -> int:
    return _ARMS.index(name.partition("@")[0])


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)
