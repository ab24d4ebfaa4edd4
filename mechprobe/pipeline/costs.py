"""The cost of a stage of a run on this machine, which ``--dry-run`` adds to its plan."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mechprobe.pipeline.run import Run
from mechprobe.planning.beside import SIDE, dictionary_seeds
from mechprobe.planning.machine import rates_here
from mechprobe.planning.plan import stage_costs
from mechprobe.planning.rates import Rates
from mechprobe.planning.scene import Scene
from mechprobe.planning.shapes import ModelShape
from mechprobe.planning.stage_cost import StageCost, countable, table
from mechprobe.planning.stages import STAGES
from mechprobe.planning.work import Assumed, count_work
from mechprobe.ranks import sharing
from mechprobe.run_layout import CHAIN
from mechprobe.stage_folder import MANIFEST


def scene_of(run: Run, rates: Rates, *, known: bool) -> Scene:
    """What the costs of a run depend on; counts of finished stages are taken from the run folder."""
    shapes: dict[str, ModelShape] = {}
    by_config: dict[str, ModelShape] = {}
    for model in run.family:
        key = model.config.to_json_string(use_diff=False)
        shapes[model.name] = by_config[key] = by_config.get(key) or ModelShape.of(model.config)
    depth = next(iter(shapes.values())).n_layers
    work = count_work(run.config, run.layout, run.family.tokenizers, depth, Assumed())
    return Scene(run.config, shapes, work, rates, sharing().count, known)


def cost_lines(run: Run, stage: str, plan: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """The cost of a stage, or of the whole chain for ``run``, as lines and JSON values; nothing without models.

    Args:
        run: The run.
        stage: Name of the command.
        plan: What its own plan counted.
    """
    if not run.config.models:
        return ["The cost depends on results that are read, not on models."], {}
    rates, known, said = rates_here(run.config.device)
    with countable():
        scene = _bounded(scene_of(run, rates, known=known), plan.get("cache", {}) if stage == "run" else plan)
        costs = _costs(scene, stage, plan)
    if stage == "run" and not run.force:
        # the report is made again each time
        made = {place.name for place in CHAIN[:-1] if (getattr(run.layout, place.folder) / MANIFEST).is_file()}
        costs = [_finished(cost) if cost.stage in made else cost for cost in costs]
    assumed = list(scene.work.notes) if stage == "run" else []
    lines = table(costs, rates) + assumed + said
    return lines, {"cost": [cost.to_dict() for cost in costs]}


def _bounded(scene: Scene, plan: Mapping[str, Any]) -> Scene:
    """A scene with no more rows than the plan of the store has, which leaves out special tokens."""
    most = plan.get("most_rows")
    return scene if most is None or scene.work.rows <= most else replace(scene, work=replace(scene.work, rows=most))


def _finished(cost: StageCost) -> StageCost:
    """What is left to do of a finished stage."""
    free = {
        "flop": 0,
        "device_bytes": 0,
        "host_bytes": 0,
        "disk_bytes": 0,
        "seconds": None if cost.seconds is None else 0,
    }
    return replace(cost, **free, note="finished")


def _costs(scene: Scene, stage: str, plan: Mapping[str, Any]) -> list[StageCost]:
    if stage == "run":
        further = len(plan.get("dictionaries", {}).get("seeds", ()))
        return stage_costs(scene) + ([dictionary_seeds(scene, further + 1)] if further else [])
    if stage == "intervene" and plan.get("conditions"):
        scene = replace(scene, work=replace(scene.work, conditions=plan["conditions"]))
    if stage == "select" and plan.get("gained"):
        scene = replace(scene, work=replace(scene.work, gained=sum(plan["gained"].values())))
    return [SIDE[stage](scene, plan) if stage in SIDE else STAGES[stage](scene)]
