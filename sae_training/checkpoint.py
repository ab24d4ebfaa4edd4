"""Training checkpoints: everything that the next step depends on, written atomically."""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_training.crosscoder import Crosscoder
from sae_training.errors import SaeTrainingError
from sae_training.parallel import ALONE, Division
from sae_training.step import Parameters
from sae_training.storage import CONFIG_FILE, WEIGHTS_FILE, config_bytes, json_bytes, read_tensors
from sae_training.tensor_files import read_part, write_tensors, written_together

CHECKPOINTS = "checkpoints"
STATE_TENSORS = "state.safetensors"
STATE_JSON = "state.json"
STREAM = "stream.pt"
CHECKSUMS = "checksums.json"
HASHED = (WEIGHTS_FILE, CONFIG_FILE, STATE_TENSORS, STREAM, STATE_JSON)


@dataclass
class TrainState:
    """What the next step depends on, except the tensors of the crosscoder.

    Attributes:
        parameters: Trained parameters; encoder and decoder are those of the crosscoder.
        center: ``[d_all]``, subtracted from the scaled activations in training.
        optimizer: Adam over the parameters.
        step: Number of finished steps.
        n_tokens: Number of tokens trained on.
        n_cuts: Number of batch cuts in the running threshold.
        last_cut: Latest batch cut, from which the search for the next one starts.
        density: Share of latents that are active per token in the latest step.
        tokens_since_fired: ``[d_sae]``, tokens since each latent was last active.
        digests: ``[n_batches]``, one number per batch trained on.
        new_digests: Digests that are still on the device and not yet in ``digests``.
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
        """Move the new digests to the CPU, and give all digests."""
        if self.new_digests:
            self.digests = torch.cat((self.digests, torch.stack(self.new_digests).cpu()))
            self.new_digests.clear()
        return self.digests

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the state by name, without copies."""
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
        return tensors

    @torch.no_grad()
    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Load what `tensors` gave."""
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
        """All numbers of the state by name."""
        return {name: getattr(self, name) for name in ("step", "n_tokens", "n_cuts", "last_cut", "density")}


@dataclass(frozen=True)
class Position:
    """What a checkpoint holds beside the tensors: the position of the stream, and the settings of the run."""

    stream: dict[str, Any]
    settings: dict[str, Any]


def write_checkpoint(
    out: Path, crosscoder: Crosscoder, state: TrainState, position: Position, keep: int, division: Division = ALONE
) -> Path:
    """Write ``checkpoints/step_NNNNNN`` atomically, and remove all but the latest ``keep`` checkpoints.

    An existing checkpoint of the same step is kept: a run reaches a step in only one way. The files do not depend on the
    number of processes. Each process writes its latents, and the first one everything else.
    """
    final = out / CHECKPOINTS / f"step_{state.step:06d}"
    if division.of_first(final.is_dir()):
        return final
    with written_together(final, division) as folder:
        if division.is_first:
            folder.mkdir()
        write_tensors(folder / WEIGHTS_FILE, crosscoder.views(), crosscoder.d_sae, division)
        write_tensors(folder / STATE_TENSORS, state.tensors(), crosscoder.d_sae, division)
        if division.is_first:
            stream = BytesIO()  # in a file, torch would also write the file's name
            torch.save(position.stream, stream)
            (folder / STREAM).write_bytes(stream.getvalue())
            (folder / CONFIG_FILE).write_bytes(config_bytes(crosscoder.config))
            (folder / STATE_JSON).write_bytes(json_bytes({"settings": position.settings, **state.scalars()}))
            (folder / CHECKSUMS).write_bytes(json_bytes({name: _sha256(folder / name) for name in HASHED}))
    if division.is_first:
        for old in list_checkpoints(out)[:-keep]:
            shutil.rmtree(old)
    return final


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def list_checkpoints(out: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [path for path in (out / CHECKPOINTS).glob("step_*") if re.fullmatch(r"step_[0-9]+", path.name)]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def load_checkpoint(
    folder: Path, crosscoder: Crosscoder, state: TrainState, settings: dict[str, Any], division: Division = ALONE
) -> dict[str, Any]:
    """Load a checkpoint into a crosscoder and a state, of several processes into each its latents.

    Returns:
        The position of the stream.

    Raises:
        SaeTrainingError: The checkpoint is damaged, or belongs to a run with other settings.
    """
    with division.agreeing():
        if division.is_first:
            _require_whole(folder)
    data = json.loads((folder / STATE_JSON).read_text(encoding="utf-8"))
    check_settings(folder, data["settings"], settings)
    crosscoder.load_weights(folder)
    file = folder / STATE_TENSORS
    whole = crosscoder.is_whole
    state.load_tensors(read_tensors(file) if whole else read_part(file, crosscoder.rows, crosscoder.d_sae))
    for name in state.scalars():
        setattr(state, name, data[name])
    return torch.load(folder / STREAM, weights_only=True)


def _require_whole(folder: Path) -> None:
    """Compare the hash of every file with the hash at the time of writing."""
    fix = f"remove the folder {folder} to resume from the checkpoint before it, or to start again."
    try:
        hashes = dict(json.loads((folder / CHECKSUMS).read_bytes()))
    except (OSError, ValueError, TypeError):
        raise SaeTrainingError(f"{folder / CHECKSUMS} is missing or damaged; {fix}") from None
    for name in HASHED:
        try:
            digest = _sha256(folder / name)
        except OSError:
            digest = None
        if digest is None or hashes.get(name) != digest:
            raise SaeTrainingError(f"{folder / name} is missing or damaged: its hash is wrong; {fix}")


def check_settings(where: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Require that a run was started with the same settings.

    Raises:
        SaeTrainingError: A setting differs; the message names the first one.
    """
    for part, settings in wanted.items():
        for key, new in settings.items():
            old = found.get(part, {}).get(key)
            if old != new:
                raise SaeTrainingError(
                    f"{where} was made with {part} {key} = {old}, but this run has {new}; "
                    "use the same value, another out, or resume=False."
                )
