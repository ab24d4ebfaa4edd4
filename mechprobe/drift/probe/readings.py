"""What the models hold inside on the prompts of the items: linear probes, and the use of a dictionary's features."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from mechprobe.data.config import TextConfig
from mechprobe.data.encoding import Ids, PromptEncoder
from mechprobe.dictionary.readout import Readout
from mechprobe.drift.probe.config import ProbeConfig
from mechprobe.drift.probe.items import Items
from mechprobe.drift.probe.linear import probe_labels
from mechprobe.drift.probe.residuals import prompt_residuals
from mechprobe.drift.probe.result import FeatureUse, LinearProbe
from mechprobe.drift.probe.usage import count_active, density, use_drift
from mechprobe.evals.answering import prompt_of
from mechprobe.files import read_json, write_json
from mechprobe.models.family import ModelFamily
from mechprobe.progress import activity, progress
from mechprobe.records import Outcomes
from mechprobe.stage_folder import read_manifest
from mechprobe.types import Site
from sae_training import Crosscoder

PART = "linear-{number:03d}.json"
"""Probes of one finished model, until the stage is finished."""


@dataclass(frozen=True)
class Prompts:
    """The items that are read, and their token ids."""

    family: ModelFamily
    items: Items
    outcomes: Outcomes
    config: ProbeConfig

    @cached_property
    def chosen(self) -> list[int]:
        """At most ``linear.items`` items, evenly from the cells, drawn by seed."""
        rng, cells = np.random.default_rng(self.config.seed), dict[tuple[str, str], list[int]]()
        order = sorted(range(len(self.items.samples)), key=lambda place: self.items.samples[place].id)
        for place in rng.permutation(order).tolist():
            label = self.items.labels[place]
            cells.setdefault((label.skill, label.domain), []).append(place)
        turns = [(turn, cell, place) for cell, places in cells.items() for turn, place in enumerate(places)]
        return [place for _, _, place in sorted(turns)[: self.config.linear.items]]

    @cached_property
    def ids(self) -> list[Ids]:
        """Token ids of the chosen prompts."""
        encoder = PromptEncoder.of(self.family.tokenizers, TextConfig(**self.outcomes.text))
        return [encoder.encode(prompt_of(self.items.samples[place])) for place in self.chosen]

    def classes(self, target: str) -> list[str]:
        """Skill, domain or family of each chosen item."""
        return [getattr(self.items.labels[place], target) for place in self.chosen]

    @property
    def sites(self) -> list[Site]:
        """The sites that are probed; `ConfigError` or `SiteError` where one does not exist."""
        named = [Site.parse(site) for site in self.config.linear.sites]
        for site in named:
            site.check(self.family.n_layers)
        return named or self.family.sites()


def targets_of(items: Items) -> list[str]:
    """What can be probed: what takes two values or more."""
    return [name for name in ("skill", "domain") if len({getattr(label, name) for label in items.labels}) > 1]


def linear_probes(prompts: Prompts, models: Sequence[str], folder: Path) -> tuple[LinearProbe, ...]:
    """Probe every model; models whose probes are in ``folder`` are not read again."""
    found: list[dict[str, Any]] = []
    with progress(len(models), "probing", unit="models") as advance:
        for number, name in enumerate(models):
            part, count = folder / PART.format(number=number), advance.found
            if not part.is_file():
                with activity(f"linear probes of {name}"):
                    write_json(part, [each.to_dict() for each in _of_model(prompts, name)])
                prompts.family[name].release()
                count = advance
            found += read_json(part)
            count(1, model=name)
    return tuple(LinearProbe.checked(each, folder) for each in found)


def _of_model(prompts: Prompts, name: str) -> list[LinearProbe]:
    config, found = prompts.config, []
    classes = {target: prompts.classes(target) for target in targets_of(prompts.items)}
    families = prompts.classes("family")
    read = prompt_residuals(
        prompts.family[name], prompts.ids, prompts.sites, config.linear.positions, config.linear.batch_size
    )
    for site, position, rows in read:
        for target, labels in classes.items():
            if len(set(labels)) < 2:
                continue
            probed = probe_labels(rows, labels, families, config.linear, config.seed)
            found.append(
                LinearProbe(
                    model=name,
                    site=str(site),
                    position=position,
                    target=target,  # type: ignore[arg-type]
                    accuracy=probed.accuracy,
                    control=probed.control,
                    selectivity=probed.selectivity,
                    chance=1 / len(set(labels)),
                    held_out=probed.held_out,
                    n_items=len(labels),
                )
            )
    return found


def dictionary_site(folder: Path | str) -> str | None:
    """The one site of a trained dictionary; None where it has several."""
    config = read_manifest(folder)["config"]
    site = config.get("site")
    return site if isinstance(site, str) and not config.get("sites") else None


def feature_use(prompts: Prompts, folder: Path | str) -> tuple[FeatureUse, ...]:
    """The use of a dictionary's features by its models, base and others of the run, on the prompts of each skill."""
    crosscoder, config = Crosscoder.load(folder, next(iter(prompts.family)).device), prompts.config
    site = dictionary_site(folder)
    assert site is not None, "checked by the stage"
    near = None if config.near is None else tuple(name for name in config.near if name in crosscoder.model_names)
    counts = count_active(crosscoder, prompts.family, Site.parse(site), prompts.ids, Readout("swap", near))
    skills, found = np.array(prompts.classes("skill")), []
    for model in crosscoder.model_names:
        for skill in sorted(set(skills)):
            items = np.flatnonzero(skills == skill)
            drifted = use_drift(counts[model], counts[config.base], items, np.random.default_rng(config.seed))
            used = density(counts[model], items)
            found.append(
                FeatureUse(
                    model=model,
                    skill=str(skill),
                    density=float(used.mean()),
                    n_features=int((used > 0).sum()),
                    drift=drifted.drift,
                    across=drifted.across,
                    split_half=drifted.split_half,
                )
            )
    return tuple(found)
