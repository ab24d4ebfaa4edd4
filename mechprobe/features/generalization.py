"""The ``select`` stage: which features go with generalization, by the paper's Score and by joint attribution.

G_t = {x : base wrong, tuned right} on task t. On the tokens of prompt and tuned response, pooled over positions and
then averaged over G_t:

* Score_k^t = mean (f_k^tuned − f_k^base), activations under the recorded read-out (arXiv 2604.25011);
* J_k^t = mean f_k ‖s_tuned W_dec[k, tuned] − s_base W_dec[k, base]‖₂, f under the joint read-out (ours,
  DESIGN.md section 4): the part of feature k in the difference of the two residual streams.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from safetensors.numpy import load_file, save
from torch import Tensor

from mechprobe.artifacts import Stage, read_json, read_manifest, write_bytes, write_json
from mechprobe.config import FrozenConfig
from mechprobe.errors import ConfigError, SelectionError
from mechprobe.features.config import ReadoutMode
from mechprobe.features.readout import Readout
from mechprobe.features.selection import Ranking, Values, agnostic_features, matched_random_sets, resolve
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import left_pad, length_batches
from mechprobe.models.residuals import residuals_plain
from mechprobe.progress import progress
from mechprobe.records import Outcomes
from mechprobe.types import Site
from sae_training import Crosscoder

if TYPE_CHECKING:
    import pandas as pd

SELECTION_FILE = "selection.json"
SCORES_FILE = "scores.safetensors"


class SelectConfig(FrozenConfig):
    """Settings of ``mechprobe select``."""

    base: str = "base"
    """The model that is wrong on G_t."""
    tuned: str = "rl"
    """The model that is right on G_t."""
    tasks: tuple[str, ...] | None = None
    """Tasks whose sets are intersected; None takes every task but ``trained``."""
    trained: tuple[str, ...] = ()
    """Tasks that post-training saw; they never select."""
    min_gained: int = 4
    """A task with fewer samples in G_t (selection half) is left out, and said so."""
    threshold: float = 0.2
    """Share of a task's maximum above which a feature counts for that task."""
    rule: str = "top50"
    """The selection that is written; see ``mechprobe intervene --features``."""
    ranking: Ranking = "joint"
    """Which values rank: ``joint`` (J) or ``score`` (the paper's)."""
    readout: ReadoutMode = "swap"
    """Read-out of f^tuned and f^base in the Score."""
    near: tuple[str, ...] | None = None
    """Models near enough to stand in each other's encoder slots under ``swap``; None means all of them."""
    positions: Literal["all", "prompt", "response"] = "all"
    """Token positions that are pooled; special tokens never are."""
    pooling: Literal["mean", "max"] = "mean"
    """How positions of one sample are pooled."""
    n_controls: int = 20
    """Matched random sets."""
    max_samples: int = 256
    """Samples of G_t that are read, per task."""
    batch_size: int = 64
    """Sequences at a time."""
    seed: int = 0
    """Of the halves and the random sets."""


@dataclass(frozen=True)
class Scores:
    """Values of every feature on every selection task.

    Attributes:
        tasks: Task names, the first axis of ``score`` and ``joint``.
        n_gained: Samples of G_t read, per task.
        score: ``[task d_sae]``, the paper's Score.
        joint: ``[task d_sae]``, J.
        density: ``[d_sae]``, share of the pooled positions on which a feature is active (joint read-out).
        decoder_norm: ``[d_sae]``, L2 norms in the models' own units, summed over models.
        mean_act: ``[d_sae]``, mean activation over the positions where a feature is active (joint read-out).
        mean_difference: ``[d_model]``, mean over the pooled positions of r_tuned − r_base, in the models' own units:
            the one-vector baseline of the interventions.
        last_difference: ``[d_model]``, the same at the last prompt position alone.
    """

    tasks: tuple[str, ...]
    n_gained: tuple[int, ...]
    score: Values
    joint: Values
    density: Values
    decoder_norm: Values
    mean_act: Values
    mean_difference: Values
    last_difference: Values

    def values(self, ranking: Ranking) -> Values:
        """The values of a ranking."""
        return self.joint if ranking == "joint" else self.score

    def save(self, path: Path) -> None:
        """Write safetensors."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _ARRAYS}
        metadata = {"tasks": "\n".join(self.tasks), "n": " ".join(map(str, self.n_gained))}
        write_bytes(path, save(arrays, metadata=metadata))

    @classmethod
    def load(cls, path: Path) -> "Scores":
        """Read what `save` wrote."""
        from safetensors import safe_open

        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata()
        counts = tuple(int(n) for n in metadata["n"].split())
        return cls(tasks=tuple(metadata["tasks"].split("\n")), n_gained=counts, **load_file(path))


_ARRAYS = ("score", "joint", "density", "decoder_norm", "mean_act", "mean_difference", "last_difference")


@dataclass(frozen=True)
class Selection:
    """A set of features with what it was chosen from and the random sets that match it.

    Attributes:
        features: Indices, best first.
        site: ``resid_post.<layer>``.
        rule: The specification, for example ``top50``.
        ranking: ``joint`` or ``score``.
        agnostic: Task-agnostic features under the ranking.
        n_agnostic: How many of ``features`` are task-agnostic.
        controls: Random sets matched on density, decoder norm and write.
        note: What a reader must know, or empty.
        crosscoder: Fingerprint of the dictionary.
        scores: All values.
    """

    features: tuple[int, ...]
    site: str
    rule: str
    ranking: Ranking
    agnostic: tuple[int, ...]
    n_agnostic: int
    controls: tuple[tuple[int, ...], ...]
    note: str
    crosscoder: str
    scores: Scores

    @classmethod
    def load(cls, folder: Path | str) -> "Selection":
        """Read a finished ``select`` stage."""
        read_manifest(folder)
        data = read_json(Path(folder) / SELECTION_FILE)
        return cls(
            features=tuple(data["features"]),
            site=data["site"],
            rule=data["rule"],
            ranking=data["ranking"],
            agnostic=tuple(data["agnostic"]),
            n_agnostic=data["n_agnostic"],
            controls=tuple(tuple(ids) for ids in data["controls"]),
            note=data["note"],
            crosscoder=data["crosscoder"],
            scores=Scores.load(Path(folder) / SCORES_FILE),
        )

    def choose(
        self,
        rule: str,
        *,
        ranking: Ranking | None = None,
        n_controls: int | None = None,
        threshold: float = 0.2,
        seed: int = 0,
        table: "pd.DataFrame | None" = None,
    ) -> "Selection":
        """Another selection from the same scores, with random sets of its own."""
        return choose(
            self.scores,
            rule,
            site=self.site,
            crosscoder=self.crosscoder,
            ranking=ranking or self.ranking,
            n_controls=len(self.controls) if n_controls is None else n_controls,
            threshold=threshold,
            seed=seed,
            table=table,
        )


def choose(  # noqa: PLR0913 - every setting is recorded in the result
    scores: Scores,
    rule: str,
    *,
    site: str,
    crosscoder: str,
    ranking: Ranking = "joint",
    n_controls: int = 20,
    threshold: float = 0.2,
    seed: int = 0,
    table: "pd.DataFrame | None" = None,
) -> Selection:
    """The selection of a rule from scores, with its matched random sets.

    Raises:
        SelectionError: The rule cannot be read, names nothing, or leaves too few features for the controls.
    """
    values = scores.values(ranking)
    live = (scores.density > 0) & (scores.decoder_norm > 0)
    chosen = resolve(rule, values, live=live, threshold=threshold, table=table)
    controls = matched_random_sets(
        chosen.ids,
        density=scores.density,
        decoder_norm=scores.decoder_norm,
        mean_act=scores.mean_act,
        n_sets=n_controls,
        seed=seed,
    )
    return Selection(
        features=chosen.ids,
        site=site,
        rule=rule,
        ranking=ranking,
        agnostic=tuple(int(k) for k in agnostic_features(values, threshold)),
        n_agnostic=chosen.agnostic,
        controls=tuple(tuple(ids) for ids in controls),
        note=chosen.note,
        crosscoder=crosscoder,
        scores=scores,
    )


def select_features(  # noqa: PLR0913 - the promised entry point
    crosscoder: Crosscoder,
    family: ModelFamily,
    outcomes: Outcomes,
    rule: str | None = None,
    *,
    site: Site | str,
    out: Path | str = "selection",
    config: SelectConfig | None = None,
    held_out: Mapping[str, Sequence[str]] | None = None,
    table: "pd.DataFrame | None" = None,
    inputs: Mapping[str, Path | str] | None = None,
    force: bool = False,
) -> Selection:
    """Score every feature on the gained samples of every selection task, and choose.

    Args:
        crosscoder: The dictionary.
        family: Its models.
        outcomes: Of base and tuned, with the samples.
        rule: Overrides the config's.
        site: Where the crosscoder was trained.
        out: Stage folder; ``selection.json``, ``scores.safetensors`` and the manifest are written there.
        config: Settings.
        held_out: Task → sample ids that must not select (they evaluate the interventions).
        table: Feature table, for ``rule:`` specifications.
        inputs: Files and stage folders whose hashes go into the manifest.
        force: Make a finished stage again.

    Raises:
        SelectionError: No task has enough gained samples, or the rule names nothing.
        ArtifactError: ``out`` holds other work.
    """
    config = config or SelectConfig()
    config = config.replace(rule=rule) if rule else config
    place = site if isinstance(site, Site) else Site.parse(site)
    gained, left_out = _gained_samples(outcomes, config, held_out or {})
    identity = {
        **config.model_dump(mode="json"),
        "site": str(place),
        "crosscoder": crosscoder.fingerprint,
        "gained": gained,
    }
    with Stage.open(
        out, name="select", config=identity, inputs=inputs, models=family.fingerprints, force=force
    ) as stage:
        if stage.done:
            return Selection.load(out)
        scores = score_features(crosscoder, family, outcomes, gained, site=place, config=config)
        selection = choose(
            scores,
            config.rule,
            site=str(place),
            crosscoder=crosscoder.fingerprint,
            ranking=config.ranking,
            n_controls=config.n_controls,
            threshold=config.threshold,
            seed=config.seed,
            table=table,
        )
        scores.save(stage.folder / SCORES_FILE)
        summary = _summary(selection, config, left_out)
        write_json(stage.folder / SELECTION_FILE, summary)
        results = {key: summary[key] for key in ("features", "agnostic_sizes", "n_gained", "left_out", "note")}
        stage.finish(
            outputs=[SELECTION_FILE, SCORES_FILE], counts=summary["n_gained"], results=results, seed=config.seed
        )
    return Selection.load(out)


def _gained_samples(
    outcomes: Outcomes, config: SelectConfig, held_out: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """``({task: sample ids of G_t}, {task left out: size})``, held-out samples excluded."""
    for model in (config.base, config.tuned):
        if model not in outcomes.models:
            raise ConfigError(f"There are no outcomes of model '{model}'; evaluate it first.")
    tasks = config.tasks or tuple(task for task in outcomes.tasks if task not in config.trained)
    unknown = [task for task in tasks if task not in outcomes.tasks]
    if unknown:
        raise ConfigError(f"There are no outcomes on task '{unknown[0]}'; there are on {', '.join(outcomes.tasks)}.")
    kept: dict[str, list[str]] = {}
    left_out: dict[str, int] = {}
    for task in tasks:
        barred = set(held_out.get(task, ()))
        ids = [k for k in outcomes.gained(task, base=config.base, tuned=config.tuned) if k not in barred]
        if len(ids) >= max(1, config.min_gained):
            kept[task] = ids[: config.max_samples]
        else:
            left_out[task] = len(ids)
    if not kept:
        sizes = ", ".join(f"{task} {n}" for task, n in left_out.items())
        raise SelectionError(
            f"On no task does {config.tuned} get at least {config.min_gained} samples right that {config.base} gets "
            f"wrong ({sizes}); evaluate more samples, or lower select.min_gained."
        )
    return kept, left_out


@torch.no_grad()
def score_features(
    crosscoder: Crosscoder,
    family: ModelFamily,
    outcomes: Outcomes,
    gained: Mapping[str, Sequence[str]],
    *,
    site: Site,
    config: SelectConfig,
) -> Scores:
    """Score and J of every feature on the given samples."""
    names = crosscoder.model_names
    models = family.subset(*names)
    base, tuned = config.base, config.tuned
    swap = Readout(config.readout, config.near)
    shift = decoder_shift(crosscoder, base=base, tuned=tuned)
    active, total = torch.zeros(2, crosscoder.d_sae, dtype=torch.float64)
    difference, last = torch.zeros(2, models.d_model[tuned], dtype=torch.float64)
    n_positions = 0
    score_rows, joint_rows = [], []
    with progress(sum(map(len, gained.values())), "scoring features", unit="samples") as advance:
        for task, ids in gained.items():
            sums = torch.zeros(2, crosscoder.d_sae, dtype=torch.float64)
            for x, mask, end in _residual_batches(models, outcomes, task, ids, site, config):
                joint = Readout("joint").feature_acts(crosscoder, x, tuned)
                gap = swap.feature_acts(crosscoder, x, tuned) - swap.feature_acts(crosscoder, x, base)
                sums[0] += _pool(gap, mask, config.pooling).double().sum(0).cpu()
                sums[1] += _pool(joint, mask, config.pooling).double().sum(0).cpu()
                active += (joint[mask] > 0).double().sum(0).cpu()
                total += joint[mask].double().sum(0).cpu()
                difference += (x[tuned] - x[base])[mask].double().sum(0).cpu()
                rows = torch.arange(len(end), device=end.device)
                last += (x[tuned] - x[base])[rows, end].double().sum(0).cpu()
                n_positions += int(mask.sum())
                advance(len(mask), task=task)
            score_rows.append((sums[0] / len(ids)).numpy())
            joint_rows.append((sums[1] / len(ids) * shift).numpy())
    return Scores(
        tasks=tuple(gained),
        n_gained=tuple(len(ids) for ids in gained.values()),
        score=np.stack(score_rows),
        joint=np.stack(joint_rows),
        density=(active / max(1, n_positions)).numpy(),
        decoder_norm=crosscoder.decoder_norm(2).sum(1).double().cpu().numpy(),
        mean_act=(total / active.clamp(min=1)).numpy(),
        mean_difference=(difference / max(1, n_positions)).numpy(),
        last_difference=(last / sum(map(len, gained.values()))).numpy(),
    )


def decoder_shift(crosscoder: Crosscoder, *, base: str, tuned: str) -> Float[Tensor, " d_sae"]:
    """‖s_tuned W_dec[k, tuned] − s_base W_dec[k, base]‖₂ in the models' own units."""
    scale = crosscoder.column_scale()
    decoder = crosscoder.decoder.detach() * scale
    first, second = decoder[:, crosscoder.columns(tuned)], decoder[:, crosscoder.columns(base)]
    if first.shape != second.shape:
        raise ConfigError(f"Models {tuned} and {base} differ in width; joint attribution needs equal widths.")
    return (first - second).double().norm(dim=1).cpu()


def _pool(
    values: Float[Tensor, "batch pos d_sae"], mask: Bool[Tensor, "batch pos"], pooling: str
) -> Float[Tensor, "batch d_sae"]:
    if pooling == "max":
        return values.masked_fill(~mask[..., None], float("-inf")).amax(dim=1)
    weights = mask.to(values.dtype)[..., None]
    return (values * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


def _residual_batches(
    models: ModelFamily, outcomes: Outcomes, task: str, ids: Sequence[str], site: Site, config: SelectConfig
) -> Any:
    """Yield ``({model: [batch pos d_model]}, mask [batch pos], last prompt position [batch])`` on prompt + tuned response."""
    tokenizer = models.tokenizer
    special = set(tokenizer.all_special_ids)
    rows, starts = [], []
    for sample_id in ids:
        if sample_id not in outcomes.samples:
            raise SelectionError(f"The outcomes do not hold the prompt of sample {sample_id}; evaluate again.")
        prompt = tokenizer(outcomes.samples[sample_id].prompt).input_ids
        rows.append([*prompt, *outcomes.record(config.tuned, task, sample_id).response_ids])
        starts.append(len(prompt))
    for batch in length_batches([len(row) for row in rows], config.batch_size):
        tokens, attention = left_pad(
            [rows[i] for i in batch], int(str(tokenizer.pad_token_id)), next(iter(models)).device
        )
        keep = attention.bool() & ~torch.isin(tokens, torch.tensor(sorted(special), device=tokens.device))
        for row, index in enumerate(batch):
            first_response = tokens.shape[1] - len(rows[index]) + starts[index]
            if config.positions == "prompt":
                keep[row, first_response:] = False
            elif config.positions == "response":
                keep[row, :first_response] = False
        x = {model.name: residuals_plain(model, tokens, attention, [site])[site].float() for model in models}
        width = tokens.shape[1]
        end = torch.tensor([width - len(rows[i]) + starts[i] - 1 for i in batch], device=tokens.device)
        yield x, keep, end


def _summary(selection: Selection, config: SelectConfig, left_out: Mapping[str, int]) -> dict[str, Any]:
    scores = selection.scores
    sizes: dict[str, Any] = {}
    for ranking in ("joint", "score"):
        values = scores.values(ranking)
        per_task = {
            task: int((row > config.threshold * row.max()).sum())
            for task, row in zip(scores.tasks, values, strict=True)
        }
        sizes[ranking] = {"per_task": per_task, "all_tasks": len(agnostic_features(values, config.threshold))}
    ids = list(selection.features)
    return {
        "features": ids,
        "rule": selection.rule,
        "ranking": selection.ranking,
        "site": selection.site,
        "pair": [config.base, config.tuned],
        "tasks": list(scores.tasks),
        "n_gained": dict(zip(scores.tasks, scores.n_gained, strict=True)),
        "left_out": dict(left_out),
        "agnostic": list(selection.agnostic),
        "n_agnostic": selection.n_agnostic,
        "agnostic_sizes": sizes,
        "scores": {
            name: {task: row[ids].tolist() for task, row in zip(scores.tasks, scores.values(name), strict=True)}
            for name in ("joint", "score")
        },
        "controls": [list(ids) for ids in selection.controls],
        "readout": str(Readout(config.readout, config.near)),
        "positions": config.positions,
        "pooling": config.pooling,
        "threshold": config.threshold,
        "note": selection.note,
        "crosscoder": selection.crosscoder,
    }
