"""The ``localize`` stage: how much of the gain passes through each site, before a dictionary is trained.

The *sufficiency* of a site is the accuracy of the base model when its whole residual there is replaced, at every position and
step, by that of the tuned model on the same tokens. The *necessity* is the accuracy of the tuned model with the base model's
residual. Both are reference values for the edits at that site and no bounds: an ablation, or a part of the change without what
cancels it, may do more. They are our own measures.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mechprobe.evals.answering import run_tasks
from mechprobe.evals.stage import check_lengths, tasks_fingerprint, text_identity
from mechprobe.evals.summary import accuracy_of, is_cut, shares
from mechprobe.evals.tasks import Task
from mechprobe.files import read_json, write_json
from mechprobe.localization.ceilings import choose_site, gain_share, patched_outcomes
from mechprobe.localization.config import LocalizeConfig
from mechprobe.localization.result import CEILINGS_FILE, SiteCeilings, SiteResult
from mechprobe.models.family import ModelFamily
from mechprobe.progress import progress
from mechprobe.records import Outcome
from mechprobe.stage_folder import Stage
from mechprobe.statistics import Interval
from mechprobe.types import Site


def localize(
    family: ModelFamily,
    tasks: Sequence[Task],
    sites: Sequence[Site | str] | str | None = None,
    out: Path | str = "localize",
    config: LocalizeConfig | None = None,
    *,
    force: bool = False,
) -> SiteCeilings:
    """Measure both ceilings at every site and choose a site.

    Args:
        family: Holds the base and the tuned model.
        tasks: What is measured.
        sites: Sites, or ``all``; overrides the setting.
        out: Stage folder for ``ceilings.json`` and the manifest.
        config: Settings.
        force: Make a finished stage again.

    Raises:
        SiteError: A site does not exist.
        ModelError: The family lacks one of the two models.
        ConfigError: The two models differ in width.
        ArtifactError: ``out`` holds other work.
    """
    config = config or LocalizeConfig()
    asked = sites if sites is not None else config.sites
    places, named = _resolve_sites(family, asked), asked != "all"
    tasks = [task.take(config.n_per_task) for task in tasks]
    pair = family.subset(config.base, config.tuned)
    check_lengths(pair, tasks)
    for model in pair:
        model.require_residual()
    identity = {
        **config.model_dump(mode="json", exclude={"near", "batch_size"}),  # patches of whole residuals use no `near`
        "sites": [str(site) for site in places],
        "named": named,
        "tasks": tasks_fingerprint(tasks),
        **text_identity(pair, tasks),
        **pair.identity,
    }
    with Stage.open(
        out, name="localize", config=identity, models=pair.fingerprints, force=force, remake="refused"
    ) as stage:
        if not stage.done:
            ceilings = _measure(pair, tasks, places, config, stage.folder, named=named)
            ceilings.save(stage.folder / CEILINGS_FILE)
            stage.finish(outputs=[CEILINGS_FILE], counts={"samples": ceilings.n}, results=ceilings.to_dict())
            for part in stage.folder.glob("part-*.json"):
                part.unlink()
    return SiteCeilings.load(out)


def _resolve_sites(family: ModelFamily, sites: Sequence[Site | str] | str) -> list[Site]:
    if sites == "all":
        return family.sites()
    named = [sites] if isinstance(sites, str) else sites
    return [Site.parse(str(site)).check(family.n_layers) for site in named]


@torch.no_grad()
def _measure(
    family: ModelFamily,
    tasks: Sequence[Task],
    sites: Sequence[Site],
    config: LocalizeConfig,
    folder: Path,
    *,
    named: bool,
) -> SiteCeilings:
    base, tuned = family[config.base], family[config.tuned]
    clean: dict[str, dict[str, Interval]] = {}
    clean_cut: dict[str, dict[str, float]] = {}
    rows: dict[str, SiteResult] = {}
    with progress(2 + 2 * len(sites), "localizing", unit="patches") as advance:
        for model in (base, tuned):
            run = partial(run_tasks, model, tasks, batch_size=config.batch_size)
            part = folder / f"part-clean-{model.name}.json"
            count = advance.found if part.is_file() else advance
            clean[model.name], clean_cut[model.name] = _resumed(part, run)
            count(1, model=model.name)
        low, high = (_untrained(clean[name], config.trained) for name in (base.name, tuned.name))
        for site in sites:
            found: dict[str, Any] = {}
            for side, host, donor in (("sufficiency", base, tuned), ("necessity", tuned, base)):
                run = partial(patched_outcomes, host, donor, site, tasks, batch_size=config.batch_size)
                part = folder / f"part-{site}-{side}.json"
                count = advance.found if part.is_file() else advance
                found[side], found[f"{side}_cut"] = _resumed(part, run)
                share = gain_share(low, high, _untrained(found[side], config.trained), rising=side == "sufficiency")
                found[f"{side}_share"] = share
                count(1, site=str(site), share=share)
            rows[str(site)] = SiteResult(**found)
    shares, last = {site: row.shares for site, row in rows.items()}, str(family.sites()[-1])
    chosen, able, reason = choose_site(shares, config.min_share, last=last, named=named)
    return SiteCeilings(
        tasks=[task.name for task in tasks],
        n={task.name: len(task.samples) for task in tasks},
        pair=(base.name, tuned.name),
        clean=clean,
        clean_cut=clean_cut,
        sites=rows,
        chosen=chosen,
        able=able,
        reason=reason,
    )


def _untrained(accuracy: Mapping[str, Interval], trained: Sequence[str]) -> Mapping[str, Interval]:
    """Accuracies on the untrained tasks, or on all tasks where every task is trained."""
    left = {task: row for task, row in accuracy.items() if task not in trained}
    return left or accuracy


def _resumed(path: Path, run: Callable[[], list[Outcome]]) -> tuple[dict[str, Interval], dict[str, float]]:
    """Accuracies of a run and its shares of cut responses, kept in a file so that an interrupted stage resumes after it."""
    if not path.is_file():
        outcomes = run()
        write_json(path, {"accuracy": accuracy_of(outcomes), "cut": shares(outcomes, outcomes[0].model, is_cut)})
    part = read_json(path)
    return {task: Interval(*row) for task, row in part["accuracy"].items()}, part["cut"]
