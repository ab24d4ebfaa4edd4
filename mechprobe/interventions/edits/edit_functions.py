"""Edits as functions that map the models' residuals on the same tokens to the host's edited residual."""

from collections.abc import Callable, Mapping, Sequence
from operator import index

import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.dictionary.readout import FoldedEncoder, Readout
from mechprobe.errors import ConfigError, ModelError, SelectionError
from mechprobe.interventions.edits.edit import Edit
from sae_training import Crosscoder

Rewrite = Callable[[Mapping[str, Float[Tensor, "batch pos d_model"]]], Float[Tensor, "batch pos d_model"]]
"""Maps residuals by model name, on the same tokens, to the residual with which the host continues."""


def build_rewrite(
    crosscoder: Crosscoder,
    ids: Sequence[int],
    edit: Edit,
    *,
    host: str,
    donor: str | None,
    readout: Readout,
    write_ids: Sequence[int] | None = None,
) -> Rewrite:
    """Build the function that applies an edit; without features to edit it returns the host's own tensor.

    Everything that does not depend on residuals is computed here, so that a call only reads the edited features and writes
    their change. The crosscoder must not be modified while the function is in use.

    Args:
        crosscoder: The dictionary, on the device of the models.
        ids: Features to edit.
        edit: What is done to them.
        host: The model whose residual is edited.
        donor: For a transplant, the model whose features are put in.
        readout: How features are read.
        write_ids: Features whose decoder directions replace those of the edited features, for equal-norm controls;
            ``replace`` and ``project`` do not support them.

    Raises:
        SelectionError: A feature does not exist, is named twice, or has no direction to steer along.
        ConfigError: A transplant has no donor other than the host, a read-out covers models of different widths, or the edit
            does not support ``write_ids``.
        ModelError: Donor and host differ in width.
    """
    if write_ids is not None and edit.kind in ("replace", "project"):
        raise ConfigError(f"The edit '{edit.kind}' does not support write_ids.")
    features = _index(crosscoder, ids)
    written = features if write_ids is None else _index(crosscoder, write_ids)
    if edit.kind == "replace":
        return _replacement(crosscoder, features, host, readout)
    if not len(features):
        return lambda x: x[host]
    if edit.kind == "transplant":
        return _transplant(crosscoder, features, written, host=host, donor=donor, readout=readout)
    if edit.kind == "project":
        return _projection(crosscoder.own_decoder(host, features), host)
    if edit.kind == "steer":
        return _steering(crosscoder, written, float(edit.value or 0.0), host)
    return _delta(FoldedEncoder(crosscoder, readout, host, features), crosscoder.own_decoder(host, written), edit, host)


def read_models(crosscoder: Crosscoder, edit: Edit, *, host: str, donor: str | None, readout: Readout) -> list[str]:
    """The models other than ``host`` whose residuals an edit of it reads, in the crosscoder's order."""
    if edit.kind in ("project", "steer"):
        return []
    models = {host, donor or host} if edit.kind == "transplant" else {host}
    read = {source for model in models for source in readout.slots(crosscoder, model)}  # of a difference, both
    return [name for name in crosscoder.model_names if name in read and name != host]


def check_ids(ids: Sequence[object], d_sae: int) -> list[int]:
    """Feature indices as Python ints; `SelectionError` where one is not an integer, out of range or duplicate."""
    found = [_whole(feature) for feature in ids]
    for feature in found:
        if not 0 <= feature < d_sae:
            raise SelectionError(f"Feature {feature} does not exist: the crosscoder has features 0 to {d_sae - 1}.")
    if len(set(found)) != len(found):
        twice = next(feature for feature in found if found.count(feature) > 1)
        raise SelectionError(f"Feature {twice} is named twice; name each feature once.")
    return found


def _whole(feature: object) -> int:
    """A Python int from an integer of Python, numpy or torch."""
    try:
        return index(feature)  # pyright: ignore[reportArgumentType]
    except TypeError:
        raise SelectionError(f"{feature!r} is not a feature index; pass integers.") from None


def _index(crosscoder: Crosscoder, ids: Sequence[int]) -> Tensor:
    return torch.tensor(check_ids(ids, crosscoder.d_sae), dtype=torch.int64, device=crosscoder.device)


def _written(resid: Tensor, coefficients: Tensor, directions: Tensor) -> Tensor:
    """Residual + Σ_k coefficients_k directions_k on every row, summed in the wider of the two dtypes."""
    directions = directions.to(resid.device)
    if resid.dtype == directions.dtype:
        flat = resid.reshape(-1, resid.shape[-1])
        return torch.addmm(flat, coefficients.to(resid.device), directions).reshape(resid.shape)
    change = (coefficients.to(resid.device) @ directions).reshape(resid.shape)
    return (resid + change).to(resid.dtype)


def _delta(read: FoldedEncoder, directions: Tensor, edit: Edit, host: str) -> Rewrite:
    """Ablate, clamp and scale: the change f' − f of the activations, along the decoder directions."""
    strength = float(edit.value or 0.0)

    def change(acts: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature"]:
        if edit.kind == "ablate":
            return -acts
        return strength - acts if edit.kind == "clamp" else (strength - 1.0) * acts

    return lambda x: _written(x[host], change(read(x)), directions)


def _transplant(
    crosscoder: Crosscoder, ids: Tensor, written: Tensor, *, host: str, donor: str | None, readout: Readout
) -> Rewrite:
    if donor is None:
        raise ConfigError("A transplant needs a donor; pass the name of the model whose features are put in.")
    if crosscoder.model_index(donor) == crosscoder.model_index(host):
        raise ConfigError(f"A transplant from {donor} into {host} changes nothing; name another model as the donor.")
    from_donor, from_host = crosscoder.own_decoder(donor, written), crosscoder.own_decoder(host, written)
    if from_donor.shape != from_host.shape:
        raise ModelError(f"Models {donor} and {host} differ in width; their features cannot be transplanted.")
    read = FoldedEncoder(crosscoder, readout, host, ids)
    if readout.mode == "joint":  # donor and host share the activations
        shift = from_donor - from_host
        return lambda x: _written(x[host], read(x), shift)
    read_donor = FoldedEncoder(crosscoder, readout, donor, ids)
    directions = torch.cat((from_donor, -from_host))
    return lambda x: _written(x[host], torch.cat((read_donor(x), read(x)), dim=1), directions)


def _replacement(crosscoder: Crosscoder, ids: Tensor, host: str, readout: Readout) -> Rewrite:
    read = FoldedEncoder(crosscoder, readout, host)
    directions, bias = crosscoder.own_decoder(host), crosscoder.own_bias(host)
    directions[ids] = 0.0

    def reconstructed(x: Mapping[str, Tensor]) -> Tensor:
        return torch.addmm(bias, read(x), directions).reshape(x[host].shape).to(x[host])

    if crosscoder.config.reads == "activations":
        return reconstructed
    first = crosscoder.model_names[0]  # the second model is the first plus the reconstructed difference
    return lambda x: x[first].to(x[host]) + reconstructed(x)


def _projection(directions: Tensor, host: str) -> Rewrite:
    _, values, basis = torch.linalg.svd(directions, full_matrices=False)
    basis = basis[values > 1e-6 * values.max()]  # orthonormal rows; smaller singular values count as 0
    return lambda x: _written(x[host], (-x[host].to(basis) @ basis.T).flatten(0, -2), basis)


def _steering(crosscoder: Crosscoder, written: Tensor, strength: float, host: str) -> Rewrite:
    directions = crosscoder.own_decoder(host, written)
    norms = torch.linalg.vector_norm(directions, dim=1, keepdim=True)
    if without := written[norms[:, 0] == 0].tolist():
        raise SelectionError(
            f"Feature {without[0]} has a zero decoder direction in {host}, so it cannot steer; leave it out of the set."
        )
    vector = strength * (directions / norms).sum(0)
    return lambda x: (x[host] + vector.to(x[host].device)).to(x[host].dtype)
