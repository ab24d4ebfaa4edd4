"""The cost of a stage of a run on this machine, which ``--dry-run`` adds to its plan."""

from dataclasses import replace
from typing import Any

from mechprobe.errors import ConfigError
from mechprobe.pipeline.run import Run
from mechprobe.planning.cards import CARDS
from mechprobe.planning.plan import table
from mechprobe.planning.rates import Rates, default_place
from mechprobe.planning.shapes import ModelShape
from mechprobe.planning.stages import STAGES, Scene, stage_costs
from mechprobe.planning.work import Assumed, count_work

_NOT_MEASURED = "no time, because this machine is not calibrated: `mechprobe bench --calibrate` takes a minute"


def rates_here(device: str) -> tuple[Rates, bool]:
    """The rates of this machine, and whether they were measured on such a device; else sizes are right and times are left out."""
    kind = "cuda" if device.startswith("cuda") else "cpu"
    try:
        found = Rates.load(default_place())
    except ConfigError:
        found = None
    if found is not None and found.device == kind:
        return found, True
    card = Rates.of_card(CARDS["A100"])
    return (
        card if kind == "cuda" else replace(card, device="cpu", program=_PROGRAM, models=_MODELS, bridge=_BRIDGE)
    ), False


_PROGRAM, _MODELS, _BRIDGE = 500_000_000, 580_000_000, 620_000_000
"""Bytes that a process holds where that was not measured: on Linux with torch 2.13 for CPUs."""


def scene_of(run: Run, rates: Rates, *, known: bool) -> Scene:
    """What the costs of a run depend on; counts of finished stages are taken from the run folder."""
    shapes: dict[str, ModelShape] = {}
    by_config: dict[str, ModelShape] = {}
    for model in run.family:
        key = model.config.to_json_string(use_diff=False)
        shapes[model.name] = by_config[key] = by_config.get(key) or ModelShape.of(model.config)
    depth = next(iter(shapes.values())).n_layers
    work = count_work(run.config, run.layout, run.family.tokenizer, depth, Assumed())
    return Scene(run.config, shapes, work, rates, 1, known)


def cost_lines(run: Run, stage: str) -> tuple[list[str], dict[str, Any]]:
    """The cost of a stage, or of the whole chain for ``run``, as lines and JSON values; empty where a stage is not modelled."""
    if not run.config.models or (stage != "run" and stage not in STAGES):
        return [], {}
    rates, known = rates_here(run.config.device)
    scene = scene_of(run, rates, known=known)
    costs = stage_costs(scene) if stage == "run" else [STAGES[stage](scene)]
    lines = table(costs, rates) + ([] if known else [_NOT_MEASURED])
    return lines, {"cost": [cost.to_dict() for cost in costs]}
