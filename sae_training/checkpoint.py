"""Training checkpoints: everything that the next step depends on, whole or not at all."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from pydantic_core import to_jsonable_python
from safetensors.torch import save
from torch import Tensor

from sae_training.atomic import atomic_path
from sae_training.config import CrosscoderConfig
from sae_training.crosscoder import Crosscoder
from sae_training.errors import SaeTrainingError
from sae_training.step import Parameters
from sae_training.storage import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    crosscoder_files,
    json_bytes,
    read_tensors,
)
from sae_training.train_config import TrainConfig

CHECKPOINTS = "checkpoints"
STATE_TENSORS = "state.safetensors"
STATE_JSON = "state.json"
STREAM = "stream.pt"
CHECKSUMS = "checksums.json"


@dataclass
class TrainState:
    """What the next step depends on beside the crosscoder's own tensors.

    Attributes:
        parameters: what is trained; encoder and decoder are the crosscoder's.
        center: subtracted from scaled activations in training.
        optimizer: Adam over the parameters.
        step: steps done.
        n_tokens: tokens trained on.
        n_cuts: batch cuts in the running threshold.
        last_cut: the latest cut, a guess for the next.
        density: share of features active per token in the latest step.
        tokens_since_fired: per feature.
        digests: one number per batch trained on.
        new_digests: those not yet among ``digests``, each on its device.
    """

    parameters: Parameters
    center: Tensor
    optimizer: torch.optim.Adam
    tokens_since_fired: Tensor
    step: int = 0
    n_tokens: int = 0
    n_cuts: int = 0
    last_cut: float | None = None
    density: float = 1.0
    digests: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    new_digests: list[Tensor] = field(default_factory=list)

    def settle_digests(self) -> Tensor:
        """All digests on the CPU, those that were left on the device included."""
        if self.new_digests:
            self.digests = torch.cat((self.digests, torch.stack(self.new_digests).cpu()))
            self.new_digests.clear()
        return self.digests

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, those of the crosscoder excepted."""
        tensors = {
            "center": self.center,
            "b_enc": self.parameters.b_enc.detach(),
            "b_dec": self.parameters.b_dec.detach(),
            "tokens_since_fired": self.tokens_since_fired,
            "digests": self.settle_digests(),
        }
        if self.parameters.log_threshold is not None:
            tensors["log_threshold"] = self.parameters.log_threshold.detach()
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors.update({f"adam.{index}.{name}": value for name, value in moments.items()})
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave."""
        self.center.copy_(tensors["center"])
        self.parameters.b_enc.copy_(tensors["b_enc"])
        self.parameters.b_dec.copy_(tensors["b_dec"])
        if self.parameters.log_threshold is not None:
            self.parameters.log_threshold.copy_(tensors["log_threshold"])
        self.tokens_since_fired = tensors["tokens_since_fired"].to(self.tokens_since_fired.device)
        self.digests = tensors["digests"]
        self.new_digests.clear()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, moment = name.split(".")
                moments.setdefault(int(index), {})[moment] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})

    def scalars(self) -> dict[str, Any]:
        """The plain numbers."""
        return {
            "step": self.step,
            "n_tokens": self.n_tokens,
            "n_cuts": self.n_cuts,
            "last_cut": self.last_cut,
            "density": self.density,
        }


def write_checkpoint(
    out: Path, crosscoder: Crosscoder, state: TrainState, stream: dict[str, Any], settings: dict[str, Any], keep: int
) -> Path:
    """Write ``checkpoints/step_NNNNNN`` under a temporary name, rename it, and drop the oldest.

    One of the same step is already this one: a run comes to a step in one way.
    """
    final = out / CHECKPOINTS / f"step_{state.step:06d}"
    if final.is_dir():
        return final
    buffer = BytesIO()
    torch.save(stream, buffer)
    files = {
        **crosscoder_files(crosscoder.config, crosscoder.tensors()),
        STATE_TENSORS: save(state.tensors()),
        STREAM: buffer.getvalue(),
        STATE_JSON: json_bytes({"settings": settings, **state.scalars()}),
    }
    files[CHECKSUMS] = json_bytes({name: hashlib.sha256(data).hexdigest() for name, data in files.items()})
    with atomic_path(final) as folder:
        folder.mkdir()
        for name, data in files.items():
            (folder / name).write_bytes(data)
    for old in list_checkpoints(out)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in (out / CHECKPOINTS).glob("step_*") if re.fullmatch(r"step_[0-9]+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def load_checkpoint(
    folder: Path, crosscoder: Crosscoder, state: TrainState, settings: dict[str, Any]
) -> dict[str, Any]:
    """Put a checkpoint into a crosscoder and a state; returns the stream position.

    Raises:
        SaeTrainingError: when the checkpoint belongs to another configuration or is damaged.
    """
    _require_whole(folder)
    data = json.loads((folder / STATE_JSON).read_text(encoding="utf-8"))
    check_settings(folder, data["settings"], settings)
    crosscoder.load_weights(folder)
    state.load_tensors(read_tensors(folder / STATE_TENSORS))
    for name in state.scalars():
        setattr(state, name, data[name])
    return torch.load(folder / STREAM, weights_only=True)


def _require_whole(folder: Path) -> None:
    """Hash every file of a checkpoint: one that is not what was written must not be gone on from."""
    mend = f"remove the folder {folder}: training then goes on from the checkpoint before it, or from the beginning."
    try:
        listed = json.loads((folder / CHECKSUMS).read_bytes())
        names = dict(listed)
    except (OSError, ValueError, TypeError):
        raise SaeTrainingError(f"{folder / CHECKSUMS} is missing or damaged; {mend}") from None
    for name in (WEIGHTS_FILE, CONFIG_FILE, STATE_TENSORS, STREAM, STATE_JSON):
        try:
            digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        except OSError:
            digest = None
        if digest is None or names.get(name) != digest:
            raise SaeTrainingError(f"{folder / name} is missing or damaged: it does not have its hash; {mend}")


def check_settings(where: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse to go on with a run that was begun with other settings; names the first that differs.

    A setting that the run does not know, because it came later, has its default.
    """
    for part, config in (("crosscoder", CrosscoderConfig), ("training", TrainConfig)):
        for key in wanted[part]:
            field_info = config.model_fields[key]
            default = None if field_info.is_required() else to_jsonable_python(field_info.default)
            old, new = found.get(part, {}).get(key, default), wanted[part][key]
            if old != new:
                raise SaeTrainingError(
                    f"{where} was made with {part} {key} = {old}, this run has {new}; "
                    "use the same value, another out, or resume=False."
                )
