"""Runs conditions on loaded models, one after another or in several processes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context, parent_process
from operator import itemgetter
from threading import Thread
from typing import Any

import torch

from mechprobe.dictionary.readout import Readout
from mechprobe.dictionary.token_rule import TokenRule
from mechprobe.errors import ConfigError
from mechprobe.evals.answering import run_tasks
from mechprobe.evals.tasks import Task
from mechprobe.files import dump_json, sha256_bytes
from mechprobe.interventions.conditions.plan import LAST_PROMPT_TOKEN, Condition, readout_of
from mechprobe.interventions.config import InterveneConfig
from mechprobe.interventions.edits.edit import Edit, EditKind
from mechprobe.interventions.edits.edit_functions import Rewrite, build_rewrite, read_models
from mechprobe.interventions.hooks.attach import SiteEdit, edited_at
from mechprobe.interventions.hooks.positions import PositionRule, Positions
from mechprobe.interventions.hooks.rewriting import rewriting
from mechprobe.interventions.rivals.rival import Rival, RivalFit, RivalInput, at_norm_of
from mechprobe.interventions.rivals.weight_change import weight_change
from mechprobe.models.family import ModelFamily
from mechprobe.progress import progress
from mechprobe.selection.result import Selection
from mechprobe.types import Site
from sae_training import Crosscoder

_DIRECTION_EDITS: dict[EditKind, Edit] = {
    "transplant": Edit("scale", 2.0),
    "project": Edit("steer", 1.0),
    "replace": Edit("steer", 1.0),
}
"""Edits that provide the directions of an equal-norm control for edits that do not support ``write_ids``."""


class Runner:
    """Runs conditions on the crosscoder's models, on tasks, at the selection's site and at the positions of the settings."""

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
        self.rivals = {rival.name: rival for rival in rivals}
        self.fit: RivalFit | None = None

    def check(self, conditions: Sequence[Condition]) -> None:
        """Build every edit once, so that `build_rewrite` raises its errors before a model is loaded."""
        edits = [c for c in conditions if c.how in ("edit", "rescaled", "shuffled", "shifted")]
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
        own = build(condition.norm_ids or condition.ids, edit, donor=condition.donor)
        if condition.how == "rescaled":
            return at_norm_of(own, build(condition.ids, edit, donor=condition.donor), host)
        if condition.how == "shifted":
            turned = build(condition.ids, edit, donor=condition.donor, write_ids=condition.write_ids)
            return at_norm_of(own, turned, host)
        if condition.how == "shuffled":
            directions = _DIRECTION_EDITS.get(edit.kind, edit)
            return at_norm_of(own, build(condition.ids, directions, donor=None, write_ids=condition.write_ids), host)
        return own

    def _rival(self, condition: Condition) -> Rewrite:
        """The change of a rival; `mechprobe.interventions.conditions.fitting` must have fitted it."""
        host, donor, rival = condition.model, str(condition.donor), self.rivals[condition.features]
        if self.fit is None:
            raise ConfigError(
                f"The rival '{rival.name}' was not fitted; pass the selection halves of the tasks to intervene."
            )
        every, chosen = range(self.crosscoder.d_sae), set(self.selection.features)
        transplant, readout = Edit("transplant"), Readout(self.config.transplant_readout, self.config.near)
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
        """The models other than the host whose residuals the edit reads."""
        if condition.how == "rival":
            readout = Readout(self.config.transplant_readout, self.config.near)
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

    @torch.no_grad()
    def run(self, condition: Condition) -> dict[str, str]:
        """Run one condition on its tasks.

        Returns:
            Task → one outcome code per response, see `mechprobe.records.Outcome.code`. The draws of a sample follow each other;
            they have the same seeds under every condition.
        """
        model = self.family[condition.model]
        tasks = [task for task in self.tasks if not condition.tasks or task.name in condition.tasks]
        prefix = self.config.force_prefix if condition.how == "prefix" else ""
        with self.in_force(condition):
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
            host, donor = self.family[condition.model], self.family[str(condition.donor)]
            with weight_change(host.hf, donor.hf, self.site, rank):
                yield
        elif condition.how == "edit":
            edit, readout = condition.edit, readout_of(condition, self.config)
            one = SiteEdit(self.crosscoder, condition.ids, edit, self.site, condition.donor, readout, where)
            with edited_at(self.family[condition.model], [one], siblings=self.family):
                yield
        else:
            with self._rewritten(condition, where):
                yield

    def _rewritten(self, condition: Condition, where: Positions) -> AbstractContextManager[None]:
        host = self.family[condition.model]
        siblings: list[str] = []
        leaves: TokenRule | None = self.leaves or None
        if condition.how == "patch" and condition.donor is not None:
            siblings, where, leaves = [condition.donor], "all", None
            rewrite: Rewrite = itemgetter(condition.donor)
        elif condition.how == "rival":
            siblings, rewrite = self.reads(condition), self.rewrite(condition)
            where = self.rivals[condition.features].positions or where
        elif condition.how == "vector":
            where = "prompt" if condition.features == LAST_PROMPT_TOKEN else where
            rewrite = self._vector(condition)
        else:
            siblings, rewrite = self.reads(condition), self.rewrite(condition)
        return rewriting(
            host.hf,
            self.site,
            rewrite,
            host_name=host.name,
            siblings={name: self.family[name].hf for name in siblings},
            positions=where,
            special_ids=list(host.tokenizer.all_special_ids),
            what=f"The condition '{condition.name}'",
            leaves=leaves,
        )

    def _vector(self, condition: Condition) -> Rewrite:
        """Add the mean residual difference to every position, or to the last prompt token (padding is on the left)."""
        scores, host = self.selection.scores, self.family[condition.model]
        last = condition.features == LAST_PROMPT_TOKEN
        sign = 1.0 if host.name == self.config.base else -1.0
        difference = scores.last_difference if last else scores.mean_difference
        vector = torch.as_tensor(sign * difference, device=host.device)

        def rewrite(x: Mapping[str, torch.Tensor]) -> torch.Tensor:
            resid = x[host.name].clone()
            resid[:, -1 if last else slice(None)] += vector.to(resid.dtype)
            return resid

        return rewrite


_worker: dict[str, Runner] = {}


def run_conditions(
    runner: Runner, conditions: Sequence[Condition], *, workers: int = 1
) -> Iterator[tuple[Condition, dict[str, str]]]:
    """Yield each condition with its outcome codes when it finishes: in order with one worker, in any order with several.

    Several ``workers`` are processes, each with its share of the threads.
    """
    if workers == 1 or len(conditions) < 2:
        for condition in conditions:
            yield condition, runner.run(condition)
        return
    threads = max(1, torch.get_num_threads() // workers)
    pool = ProcessPoolExecutor(
        min(workers, len(conditions)), get_context("spawn"), initializer=_start, initargs=(runner, threads)
    )
    try:
        waiting = {pool.submit(_work, condition): condition for condition in conditions}
        for done in as_completed(waiting):
            yield waiting[done], done.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start(runner: Runner, threads: int) -> None:
    Thread(target=_exit_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _worker["runner"] = runner


def _exit_with_parent() -> None:
    """Exit when the parent dies, because a killed parent cannot stop its workers."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(condition: Condition) -> dict[str, str]:
    return _worker["runner"].run(condition)
