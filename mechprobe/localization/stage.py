"""The ``localize`` stage: what any feature at a site could do, measured before a dictionary is trained.

*Sufficiency* of a site: accuracy of the base model when its whole residual there is replaced, at every position and
step, by the tuned model's on the same tokens. *Necessity*: accuracy of the tuned model with the base's residual.
Both are ours (DESIGN.md, section 4): they bound the effect of every edit at that site.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mechprobe.errors import ConfigError
from mechprobe.evals.answering import run_tasks
from mechprobe.evals.result import Accuracy
from mechprobe.evals.stage import check_lengths, tasks_fingerprint
from mechprobe.evals.summary import accuracy_of
from mechprobe.evals.tasks import Task
from mechprobe.files import read_json, write_json
from mechprobe.interventions.hooks.residual_hooks import rewriting
from mechprobe.localization.config import LocalizeConfig
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.progress import progress
from mechprobe.records import Outcome
from mechprobe.stage_folder import Stage, read_manifest
from mechprobe.statistics import Interval
from mechprobe.types import Site

CEILINGS_FILE = "ceilings.json"


@dataclass(frozen=True)
class SiteCeilings:
    """Accuracies under whole-residual patching.

    Attributes:
        tasks: Task names.
        n: Samples per task.
        pair: ``(base, tuned)``.
        clean: Model → task → accuracy with interval, unpatched.
        sites: Site → ``sufficiency`` and ``necessity`` (task → accuracy with interval) and their ``*_share`` of the
            gain, summed over the untrained tasks; NaN where that gain is not clear of noise.
        chosen: The site that `choose_site` takes.
        able: Whether both shares of the chosen site reach ``min_share``.
        reason: One sentence.
    """

    tasks: list[str]
    n: dict[str, int]
    pair: list[str]
    clean: dict[str, Accuracy]
    sites: dict[str, dict[str, Any]]
    chosen: str
    able: bool
    reason: str

    @classmethod
    def load(cls, folder: Path | str) -> "SiteCeilings":
        """Read a finished ``localize`` stage."""
        read_manifest(folder)
        data = read_json(Path(folder) / CEILINGS_FILE)
        return cls(**{**data, "clean": {model: _accuracy(rows) for model, rows in data["clean"].items()}})


def patched_outcomes(
    host: LanguageModel, donor: LanguageModel, site: Site, tasks: Sequence[Task], *, batch_size: int = 512
) -> list[Outcome]:
    """Outcomes of ``host`` with its residual at ``site`` replaced by ``donor``'s on the same tokens, at every step.

    Raises:
        ConfigError: The two models differ in width.
    """
    if host.d_model != donor.d_model:
        raise ConfigError(
            f"Models {host.name} and {donor.name} differ in width; one's residual cannot replace the other's."
        )
    siblings = {donor.name: donor.hf}
    with rewriting(host.hf, site, lambda x: x[donor.name], host_name=host.name, siblings=siblings):
        return run_tasks(host, tasks, label=f"{host.name}<-{donor.name}@{site}", batch_size=batch_size)


def gain_share(low: Accuracy, high: Accuracy, patched: Accuracy, *, rising: bool) -> float:
    """Share of the gain from ``low`` to ``high`` that a patch gives (rising) or takes (falling), summed over tasks.

    NaN where the gain is not clear of noise, see `gain_of`.
    """
    total = sum(high[task][0] - low[task][0] for task in low)
    gain, error = gain_of(low, high)
    if total <= 0 or gain <= 1.96 * error:
        return float("nan")
    start, sign = (low, 1.0) if rising else (high, -1.0)
    return sum(sign * (patched[task][0] - start[task][0]) for task in low) / total


def gain_of(low: Accuracy, high: Accuracy) -> tuple[float, float]:
    """``(gain, standard error)`` of the sum over tasks of high less low, as of independent proportions.

    One right and one wrong response are added to every proportion (Agresti & Caffo 2000): without them a task of one
    sample, wrong before and right after, would have a gain of 1 and no error at all.
    """
    gain, variance = 0.0, 0.0
    for sign, accuracy in ((-1, low), (1, high)):
        for share, n in ((row[0], row[3]) for row in accuracy.values()):
            adjusted = (share * n + 1) / (n + 2)
            gain += sign * adjusted
            variance += adjusted * (1 - adjusted) / (n + 2)
    return gain, math.sqrt(variance)


def localize(
    family: ModelFamily,
    tasks: Sequence[Task],
    sites: Sequence[Site | str] | str | None = None,
    out: Path | str = "localize",
    config: LocalizeConfig | None = None,
    *,
    force: bool = False,
) -> SiteCeilings:
    """Measure both ceilings at every site and choose a site, see `choose_site`.

    Args:
        family: Holds the base and the tuned model.
        tasks: What is measured.
        sites: Sites or ``all``; overrides the config's.
        out: Stage folder; ``ceilings.json`` and the manifest are written there.
        config: Settings.
        force: Make a finished stage again.

    Raises:
        SiteError: A site does not exist.
        ModelError: The family lacks one of the two models.
        ArtifactError: ``out`` holds other work.
    """
    config = config or LocalizeConfig()
    wanted = sites if sites is not None else config.sites
    places = _resolve_sites(family, wanted)
    tasks = [task.take(config.n_per_task) for task in tasks]
    pair = family.subset(config.base, config.tuned)
    check_lengths(pair, tasks)
    identity = {
        **config.model_dump(mode="json", exclude={"near"}),
        "sites": [str(site) for site in places],
        "tasks": tasks_fingerprint(tasks),
        **pair.reduced_dtypes,
    }
    with Stage.open(
        out, name="localize", config=identity, models=pair.fingerprints, force=force, remake="refused"
    ) as stage:
        if not stage.done:
            ceilings = _measure(pair, tasks, places, config, stage.folder)
            write_json(stage.folder / CEILINGS_FILE, asdict(ceilings))
            stage.finish(outputs=[CEILINGS_FILE], counts={"samples": ceilings.n}, results=asdict(ceilings))
            for part in stage.folder.glob("part-*.json"):
                part.unlink()
    return SiteCeilings.load(out)


def _resolve_sites(family: ModelFamily, sites: Sequence[Site | str] | str) -> list[Site]:
    if isinstance(sites, str):
        if sites == "all":
            return family.sites()
        sites = [sites]
    places = [site if isinstance(site, Site) else Site.parse(site) for site in sites]
    return [site.check(family.n_layers) for site in places]


@torch.no_grad()
def _measure(
    family: ModelFamily, tasks: Sequence[Task], sites: Sequence[Site], config: LocalizeConfig, folder: Path
) -> SiteCeilings:
    base, tuned = family[config.base], family[config.tuned]
    with progress(2 + 2 * len(sites), "localizing", unit="patches") as advance:
        clean: dict[str, Accuracy] = {}
        for model in (base, tuned):
            clean[model.name] = _kept(
                folder / f"part-clean-{model.name}.json",
                lambda model=model: accuracy_of(run_tasks(model, tasks, batch_size=config.batch_size)),
            )
            advance(1, model=model.name)
        rows: dict[str, dict[str, Any]] = {}
        for site in sites:
            row: dict[str, Any] = {}
            for side, host, donor in (("sufficiency", base, tuned), ("necessity", tuned, base)):
                row[side] = _kept(
                    folder / f"part-{site}-{side}.json",
                    lambda host=host, donor=donor, site=site: accuracy_of(
                        patched_outcomes(host, donor, site, tasks, batch_size=config.batch_size)
                    ),
                )
                share = gain_share(
                    *(
                        _without(accuracy, config.trained)
                        for accuracy in (clean[base.name], clean[tuned.name], row[side])
                    ),
                    rising=side == "sufficiency",
                )
                row[f"{side}_share"] = share
                advance(1, site=str(site), share=share)
            rows[str(site)] = row
    chosen, able, reason = choose_site(rows, config.min_share)
    return SiteCeilings(
        tasks=[task.name for task in tasks],
        n={task.name: len(task.samples) for task in tasks},
        pair=[base.name, tuned.name],
        clean=clean,
        sites=rows,
        chosen=chosen,
        able=able,
        reason=reason,
    )


def _without(accuracy: Accuracy, trained: Sequence[str]) -> Accuracy:
    """The untrained tasks' rows (all rows when every task is trained)."""
    left = {task: row for task, row in accuracy.items() if task not in trained}
    return left or accuracy


def _kept(path: Path, measure: Any) -> Accuracy:
    """The result of ``measure``, kept in a file so that an interrupted stage goes on from there."""
    if not path.is_file():
        write_json(path, measure())
    return _accuracy(read_json(path))


def _accuracy(rows: Mapping[str, Sequence[Any]]) -> Accuracy:
    return {task: Interval(*row) for task, row in rows.items()}


def choose_site(rows: Mapping[str, Mapping[str, Any]], min_share: float) -> tuple[str, bool, str]:
    """``(site, able, reason)`` of rows of `SiteCeilings.sites`, by a rule that is ours.

    The site whose smaller share is largest, where that reaches ``min_share``. Else the one whose shares, each cut to 0 to 1, sum
    to the most: one ceiling that is high lets edits of one of the two models be judged. Else, where the gain is not clear
    of noise, the deepest site. Of equals the first.
    """
    if all(math.isnan(row["sufficiency_share"]) for row in rows.values()):
        chosen = max(rows, key=lambda site: Site.parse(site).layer)
        return (
            chosen,
            False,
            "The tuned model's gain over the tasks is not clear of noise, so there is nothing to locate; "
            f"{chosen} is the deepest site.",
        )
    both = {site: (row["sufficiency_share"], row["necessity_share"]) for site, row in rows.items()}
    chosen = max(both, key=lambda site: min(both[site]))
    able = min(both[chosen]) >= min_share
    if not able:
        chosen = max(both, key=lambda site: sum(min(max(share, 0.0), 1.0) for share in both[site]))
    sufficiency, necessity = both[chosen]
    shares = f"sufficiency {sufficiency:.0%} and necessity {necessity:.0%} of the gain"
    if able:
        return chosen, True, f"{chosen} has both ceilings high: {shares}."
    if max(both[chosen]) < min_share:
        found = f"{chosen} comes nearest ({shares}), so an edit there that fails is no evidence against its features."
    else:
        judged, other = ("base", "tuned") if sufficiency >= necessity else ("tuned", "base")
        found = (
            f"{chosen} has one of them ({shares}): edits of the {judged} model can be judged there, and an edit of the "
            f"{other} model that fails is no evidence against its features."
        )
    return chosen, False, f"No site has both ceilings at {min_share:.0%} of the gain or more; {found}"
