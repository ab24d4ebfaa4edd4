"""Chooses the read-out of transplants for a pair of models, on the tokens of the selection halves.

A transplant into the base model writes w = Σ_{k∈S} (f_k^t W_k^t − f_k^b W_k^b) on a token, with tuned model t, base b, and
decoders W in the models' own units. With D_k = W_k^t − W_k^b, its means over the two models marked by bars, this is

    w = Σ_k f̄_k D_k + (f_k^t − f_k^b) W̄_k,

the *turn* of the decoders plus the *move* of the activations. Under the joint read-out f^t = f^b, so a transplant writes the turn
only, and a concept to which base and tuned give different values on one token needs a feature for every pair of values. The
dictionary is trained to reconstruct both models by this read-out, so that all features together write nearly the whole difference
d = r_t − r_b; but a set of few features writes little of it. Under ``swap`` the same concept is one feature that moves.

The rule compares how much of d the transplant of the selected set writes,

    share = 1 − Σ ‖d − w‖² / Σ ‖d‖²   over tokens,

and takes ``swap`` where its share is larger by more than `TOLERANCE`. Otherwise ``joint`` is kept: it is the read-out of the
training, and a feature that is alike in both models writes nothing under it. The share has one value for both hosts, because a
transplant into the tuned model writes −w. The decomposition and the rule are ours.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.dictionary.readout import Readout
from mechprobe.evals.tasks import Task
from mechprobe.files import read_json, write_json
from mechprobe.formatting import percent
from mechprobe.interventions.conditions.runner import Runner
from mechprobe.interventions.conditions.selection_tokens import SelectionTokens
from mechprobe.interventions.edits.edit import Edit
from mechprobe.interventions.edits.edit_functions import Rewrite, build_rewrite, read_models
from mechprobe.interventions.readout_rows import ReadoutChoice, ReadoutShare
from mechprobe.types import ReadoutMode

CANDIDATES: tuple[ReadoutMode, ReadoutMode] = ("joint", "swap")
"""The read-outs among which the rule chooses; the first is kept where they tie."""
TOLERANCE = 0.05
"""Difference of the shares up to which two read-outs tie."""
_MOST_ACTS = 2**26
"""Activations that are held at a time."""
_TRANSPLANT = Edit("transplant")
_FILE = "part-readout.json"


def check_choice(runner: Runner, tasks: Sequence[Task]) -> None:
    """Raise `SelectionError` where a run on the ``tasks`` might choose ``swap`` without the random sets that match it."""
    if runner.config.chooses_readout and tasks and runner.selection.transplant_controls:
        _ = runner.selection.scores.swap_covariates


def choose_readout(runner: Runner, tokens: SelectionTokens, folder: Path | None = None) -> ReadoutChoice:
    """The read-out of the transplants of the runner's set, see the rule above.

    Args:
        runner: Models, dictionary, selected set and settings.
        tokens: Tokens of the selection halves; without a sample ``joint`` is taken.
        folder: Where the choice is kept until the stage is finished, so that a resumed run has the same.
    """
    if folder is not None and (folder / _FILE).is_file():
        return ReadoutChoice.checked(read_json(folder / _FILE), folder / _FILE)
    found = _measured(runner, tokens) if tokens.n_samples else _not_measured()
    if folder is not None:
        write_json(folder / _FILE, found.to_dict())
    return found


def _not_measured() -> ReadoutChoice:
    return ReadoutChoice(
        chosen=CANDIDATES[0],
        n_samples=0,
        n_tokens=0,
        tolerance=TOLERANCE,
        shares={},
        sentence=f"Transplants use the {CANDIDATES[0]} read-out, because no selection half was given on which to choose one.",
    )


def _measured(runner: Runner, tokens: SelectionTokens) -> ReadoutChoice:
    shares, n_tokens = measure_shares(runner, tokens)
    kept, other = CANDIDATES
    chosen = other if shares[other].selected > shares[kept].selected + TOLERANCE else kept
    return ReadoutChoice(
        chosen=chosen,
        n_samples=tokens.n_samples,
        n_tokens=n_tokens,
        tolerance=TOLERANCE,
        shares=shares,
        sentence=_sentence(runner, chosen, shares, n_tokens),
    )


@torch.no_grad()
def measure_shares(runner: Runner, tokens: SelectionTokens) -> tuple[dict[ReadoutMode, ReadoutShare], int]:
    """The shares of the difference that transplants write under each of `CANDIDATES`, and the number of tokens.

    The tokens are those that edits may change under the positions of the settings, without special tokens.
    """
    base, tuned, device = runner.config.base, runner.config.tuned, runner.crosscoder.device
    sets = {"selected": list(runner.selection.features), "every": list(range(runner.crosscoder.d_sae))}
    rewrites = {(mode, name): _transplant(runner, mode, ids) for mode in CANDIDATES for name, ids in sets.items()}
    missed, total, n_tokens = dict.fromkeys(rewrites, 0.0), 0.0, 0
    n_rows = max(1, _MOST_ACTS // runner.crosscoder.d_sae)
    for batch in tokens.batches(_models_read(runner)):
        for some in batch.edited.nonzero()[:, 0].split(n_rows):
            x = {name: rows[some].to(device) for name, rows in batch.x.items()}
            difference = x[tuned] - x[base]
            n_tokens += len(difference)
            total += _square(difference)
            for key, rewrite in rewrites.items():
                missed[key] += _square(difference - (rewrite(x) - x[base]))
    left = {key: value / total if total > 0 else float("nan") for key, value in missed.items()}
    shares: dict[ReadoutMode, ReadoutShare] = {
        mode: ReadoutShare(selected=1.0 - left[mode, "selected"], every=1.0 - left[mode, "every"])
        for mode in CANDIDATES
    }
    return shares, n_tokens


def _transplant(runner: Runner, mode: ReadoutMode, ids: list[int]) -> Rewrite:
    config, readout = runner.config, Readout(mode, runner.config.near)
    return build_rewrite(runner.crosscoder, ids, _TRANSPLANT, host=config.base, donor=config.tuned, readout=readout)


def _models_read(runner: Runner) -> list[str]:
    """Base, tuned, and the other models whose residuals a read-out needs."""
    config = runner.config
    others = [
        name
        for mode in CANDIDATES
        for name in read_models(
            runner.crosscoder, _TRANSPLANT, host=config.base, donor=config.tuned, readout=Readout(mode, config.near)
        )
    ]
    return list(dict.fromkeys([config.base, config.tuned, *others]))


def _square(rows: Float[Tensor, "row d_model"]) -> float:
    return float((rows.double() ** 2).sum())


def _sentence(runner: Runner, chosen: ReadoutMode, shares: Mapping[ReadoutMode, ReadoutShare], n_tokens: int) -> str:
    config, kept = runner.config, CANDIDATES[0]
    models = f"{config.base} and {config.tuned}"
    begin = f"Transplants use the {chosen} read-out, chosen on {n_tokens:,} tokens of the selection halves"
    if not n_tokens or shares[kept].selected != shares[kept].selected:
        return f"{begin}, where {models} do not differ; {kept} is kept then."
    selected, every = (
        " and ".join(f"{percent(getattr(shares[mode], name))} % under {mode}" for mode in CANDIDATES)
        for name in ("selected", "every")
    )
    tie = abs(shares[CANDIDATES[1]].selected - shares[kept].selected) <= TOLERANCE
    why = f"; within {100 * TOLERANCE:.0f} points they tie, and {kept} is kept" if tie else ""
    return (
        f"{begin}: of the squared difference between {models}, the transplant of {runner.selection.rule} writes {selected}{why} "
        f"(every feature: {every})."
    )
