"""What a condition does to its host, and one condition run token by token; `mechprobe.interventions.conditions.batches` runs many."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import asdict
from functools import partial
from operator import itemgetter
from typing import Any

import torch

from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.token_rule import TokenRule
from mechprobe.errors import ConfigError
from mechprobe.evals.answering import run_tasks
from mechprobe.evals.tasks import Task
from mechprobe.files import dump_json, sha256_bytes
from mechprobe.interventions.conditions.plan import LAST_PROMPT_TOKEN, TURNED, Condition, readout_of
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.edits.edit import Edit, EditKind
from mechprobe.interventions.edits.edit_functions import Rewrite, build_rewrite, read_models
from mechprobe.interventions.hooks.attach import SiteEdit, edited_at, site_rewrite
from mechprobe.interventions.hooks.positions import PositionMask, PositionRule, Positions, as_rule
from mechprobe.interventions.hooks.rewriting import SiteRewrite, rewriting_sites
from mechprobe.interventions.rivals.rival import Rival, RivalFit, RivalInput, at_norm_of
from mechprobe.interventions.rivals.weight_change import weight_change
from mechprobe.models.family import ModelFamily
from mechprobe.models.one_by_one import OneWhole
from mechprobe.progress import progress
from mechprobe.selection.result import Selection
from mechprobe.types import ReadoutMode, Site
from sae_training import Crosscoder

_DIRECTION_EDITS: dict[EditKind, Edit] = {
    "transplant": Edit("scale", 2.0),
    "project": Edit("steer", 1.0),
    "replace": Edit("steer", 1.0),
}
"""Edits that provide the directions of an equal-norm control for edits that do not support ``write_ids``."""


class Runner:
    """Runs conditions on the crosscoder's models, on tasks, at the selection's site and at the positions of the settings.

    ``models`` holds the host of a condition whole, and the models that it reads up to the site.
    """

    def __init__(
        self,
        family: ModelFamily,
        crosscoder: Crosscoder,
        selection: Selection,
        tasks: Sequence[Task],
        config: InterveneConfig,
        rivals: Sequence[Rival] = (),
    ) -> None:
        self.family = family.subset(*crosscoder.model_names)
        self.crosscoder = crosscoder.eval()
        self.selection = selection
        self.tasks = list(tasks)
        self.config = config
        self.positions = PositionRule.parse(config.positions)
        self.leaves = TokenRule() if self.positions.with_dropped else TokenRule.of(crosscoder)
        self.site = Site.parse(selection.site)
        self.models = OneWhole(self.family, self.site)
        self.rivals = {rival.name: rival for rival in rivals}
        self.fit: RivalFit | None = None
        self._last_own: tuple[object, Rewrite] | None = None

    def under(self, readout: ReadoutMode) -> "Runner":
        """The same runner with another read-out of transplants, and with random sets that match it."""
        changed = copy(self)
        changed.config = self.config.replace(transplant_readout=readout)
        changed.selection = self.selection.under(readout, seed=self.config.seed)
        return changed

    def check(self, conditions: Sequence[Condition]) -> None:
        """Build every edit, so that `build_rewrite` raises its errors before a model is loaded.

        Of the controls that turn the set's change, the first of each kind is built: their features are drawn among those that have
        a direction.
        """
        edits = [c for c in conditions if c.how == "edit" or (c.how in TURNED and not c.draw)]
        with progress(len(edits), "checking edits", unit="edits") as advance:
            for condition in edits:
                self.rewrite(condition)
                advance()

    def rewrite(self, condition: Condition) -> Rewrite:
        """The edit of a condition, its control of equal norm, or a rival, as a function of the models' residuals.

        Controls of equal norm have the norm of the set's change on every token. ``rescaled`` is the change of a random set,
        ``shuffled`` the set's own change turned to other features' decoder directions in the host, and ``shifted`` that turned to
        other features' shifts between the models. Where the edit does not support ``write_ids``, an edit of `_DIRECTION_EDITS`
        provides the directions.
        """
        if condition.how == "rival":
            return self._rival(condition)
        readout, host, edit = readout_of(condition, self.config), condition.model, Edit.parse(condition.edit)
        build = partial(build_rewrite, self.crosscoder, host=host, readout=readout)
        own = (
            self._own(condition, readout)
            if condition.how in TURNED
            else build(condition.ids, edit, donor=condition.donor)
        )
        if condition.how == "rescaled":
            return at_norm_of(own, build(condition.ids, edit, donor=condition.donor), host)
        # in a dictionary of a difference, what a feature writes is its shift, and one of the models has no decoders
        of_difference = self.crosscoder.config.reads == "difference" and edit.kind == "transplant"
        if condition.how == "shifted" or (condition.how == "shuffled" and of_difference):
            turned = build(condition.ids, edit, donor=condition.donor, write_ids=condition.write_ids)
            return at_norm_of(own, turned, host)
        if condition.how == "shuffled":
            directions = _DIRECTION_EDITS.get(edit.kind, edit)
            return at_norm_of(own, build(condition.ids, directions, donor=None, write_ids=condition.write_ids), host)
        return own

    def _own(self, condition: Condition, readout: Readout) -> Rewrite:
        """The change of the set whose norm a control has; that of the last control serves the next."""
        ids = condition.norm_ids or condition.ids
        key = (condition.model, condition.edit, condition.donor, ids, readout)
        if self._last_own is None or self._last_own[0] != key:
            host, edit = condition.model, Edit.parse(condition.edit)
            made = build_rewrite(self.crosscoder, ids, edit, host=host, donor=condition.donor, readout=readout)
            self._last_own = key, made
        return self._last_own[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_last_own": None}  # functions do not go to other processes

    def _rival(self, condition: Condition) -> Rewrite:
        """The change of a rival; `mechprobe.interventions.conditions.fitting` must have fitted it."""
        host, donor, rival = condition.model, str(condition.donor), self.rivals[condition.features]
        if self.fit is None:
            raise ConfigError(
                f"The rival '{rival.name}' was not fitted; pass the selection halves of the tasks to intervene."
            )
        every, chosen = range(self.crosscoder.d_sae), set(self.selection.features)
        transplant, readout = Edit("transplant"), Readout(self.config.readout_of_transplants, self.config.near)
        build = partial(build_rewrite, self.crosscoder, edit=transplant, host=host, donor=donor, readout=readout)
        return rival.build(
            RivalInput(
                host=host,
                donor=donor,
                sign=1.0 if host == self.config.base else -1.0,
                fit=self.fit,
                dose=self.fit.doses.get(f"{host}|{rival.name}", 1.0),
                selected=build(self.selection.features),
                others=lambda: build([feature for feature in every if feature not in chosen]),
            )
        )

    def reads(self, condition: Condition) -> list[str]:
        """The models other than the host whose residuals the change reads."""
        if condition.how == "patch":
            return [str(condition.donor)]
        if condition.how == "vector":
            return []
        if condition.how == "rival":
            readout = Readout(self.config.readout_of_transplants, self.config.near)
            own = read_models(
                self.crosscoder, Edit("transplant"), host=condition.model, donor=condition.donor, readout=readout
            )
            return self.rivals[condition.features].reads(str(condition.donor), own)
        edit, readout = Edit.parse(condition.edit), readout_of(condition, self.config)
        return read_models(self.crosscoder, edit, host=condition.model, donor=condition.donor, readout=readout)

    def stage_identity(
        self, name: str, conditions: Sequence[Condition], inputs: Any, settings: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The arguments of `Stage.open` that identify a stage which runs the conditions."""
        sets = sha256_bytes(dump_json([asdict(condition) for condition in conditions]).encode())
        parts = {"crosscoder": self.crosscoder.fingerprint, "site": self.selection.site, "sets": sets}
        config = {**settings, **parts, **self.family.identity}
        models = self.family.fingerprints
        return {"name": name, "config": config, "inputs": inputs, "models": models, "remake": "refused"}

    def tasks_of(self, condition: Condition) -> list[Task]:
        """The tasks that a condition runs on."""
        return [task for task in self.tasks if not condition.tasks or task.name in condition.tasks]

    @torch.no_grad()
    def run(
        self, condition: Condition, tasks: Sequence[Task] | None = None, change: SiteRewrite | None = None
    ) -> dict[str, str]:
        """Run one condition, token by token.

        Args:
            condition: The condition.
            tasks: Tasks; None takes those of the condition.
            change: What it does to the residual; None takes that of `change`.

        Returns:
            Task → one outcome code per response, see `mechprobe.records.Outcome.code`. The draws of a sample follow each other;
            they have the same seeds under every condition.
        """
        model, tasks = self.models.whole(condition.model), self.tasks_of(condition) if tasks is None else tasks
        prefix = self.config.force_prefix if condition.how == "prefix" else ""
        with self.in_force(condition) if change is None else self._with(condition, change):
            outcomes = run_tasks(model, tasks, label=condition.name, batch_size=self.config.batch_size, prefix=prefix)
        codes: dict[str, str] = {task.name: "" for task in tasks}
        for outcome in outcomes:
            codes[outcome.task] += outcome.code
        return codes

    @contextmanager
    def in_force(self, condition: Condition, *, positions: Positions | None = None) -> Iterator[None]:
        """Apply the edit of a condition to its host while the block runs.

        It acts at ``positions``; None takes those of the settings. Positions that the crosscoder does not describe are left
        alone by edits, their controls and vectors. Whole residuals are patched everywhere.
        """
        where = self.positions if positions is None else positions
        if condition.how in ("clean", "prefix"):
            yield
        elif condition.how == "rival" and (rank := self.rivals[condition.features].weight_rank) is not None:
            host, donor = self.models.whole(condition.model), self.models[str(condition.donor)]
            with weight_change(host.hf, donor.hf, self.site, rank):
                yield
        elif condition.how == "edit":
            host = self.models.whole(condition.model)
            with edited_at(host, [self._site_edit(condition, where)], siblings=self.models):
                yield
        else:
            with self._with(condition, self.change(condition, where)):
                yield

    def _site_edit(self, condition: Condition, where: Positions) -> SiteEdit:
        readout = readout_of(condition, self.config)
        return SiteEdit(self.crosscoder, condition.ids, condition.edit, self.site, condition.donor, readout, where)

    def _with(self, condition: Condition, change: SiteRewrite) -> AbstractContextManager[None]:
        host = self.models.whole(condition.model)
        siblings = {name: self.models[name].hf for name in change.reads}
        return rewriting_sites(host.hf, [change], host_name=host.name, siblings=siblings)

    def change(self, condition: Condition, positions: Positions | None = None) -> SiteRewrite:
        """What a condition does to its host's residual at the site; arguments as for `in_force`."""
        host, where = self.family[condition.model], self.positions if positions is None else positions
        special = list(host.tokenizer.all_special_ids)
        if condition.how == "edit":
            return site_rewrite(self._site_edit(condition, where), host.name, self.family, special)
        reads = self.reads(condition)
        leaves: TokenRule | None = self.leaves or None
        if condition.how == "patch":
            where, leaves = "all", None
            rewrite: Rewrite = itemgetter(*reads)
        elif condition.how == "vector":
            where = "last_prompt_token" if condition.features == LAST_PROMPT_TOKEN else where
            rewrite = self._vector(condition)
        else:
            rewrite = self.rewrite(condition)
            where = (self.rivals[condition.features].positions if condition.how == "rival" else "") or where
        what = f"The condition '{condition.name}'"
        return SiteRewrite(self.site, rewrite, tuple(reads), PositionMask(as_rule(where), special), what, leaves)

    def _vector(self, condition: Condition) -> Rewrite:
        """Add the mean residual difference; that at the last prompt token is added there only."""
        scores, host = self.selection.scores, self.family[condition.model]
        last = condition.features == LAST_PROMPT_TOKEN
        sign = 1.0 if host.name == self.config.base else -1.0
        difference = scores.last_difference if last else scores.mean_difference
        vector = torch.as_tensor(sign * difference, device=host.device)
        return lambda x: x[host.name] + vector.to(x[host.name].dtype)
