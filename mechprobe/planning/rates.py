"""How fast a device is, and what a process holds before it begins: measured on this machine, or from the published peaks of a card."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, TypeAdapter, ValidationError

from mechprobe.errors import ConfigError
from mechprobe.files import write_json
from mechprobe.planning.cards import BLOCK_CALL, MEMORY, PRODUCTS, STEP_CALL, Card

FORMAT = 3
KITS = ("program", "models", "bridge", "optimizer", "figures", "classifiers", "sae_lens", "trl", "page")
"""What a command imports and uses for the first time: what every stage imports, transformers with a model that has responded, the
bridge of TransformerLens, an optimizer, matplotlib, scikit-learn, sae-lens, TRL. ``page`` is what the report imports, which does
without the others."""
UNITS = (
    "opened",
    "loaded",
    "weight",
    "token",
    "prompt",
    "hashed",
    "record",
    "drawn",
    "curve",
    "figure",
    "chart",
    "product",
    "eigen",
    "fitted",
    "sampled",
    "sae_step",
)
"""Work of the host: a model folder that is inspected, a model that is loaded and released, a byte of stored weights that becomes a number, a token and a
prompt that are tokenized, a byte that is hashed, a response that is scored and written, a value that a bootstrap draws, a checkpoint of a
simulated curve, a figure of one axes, each further axes of it, a multiplication and addition of float64 matrices, an
eigendecomposition of side 1 (it grows with the third power of the side), a number that a logistic regression
is fitted on, a token that is sampled instead of chosen greedily, and a token and latent of a step of sae-lens, beside its products."""
_CONTEXT = 600 * 10**6
"""Bytes that CUDA and its libraries take on a card (ours)."""
_GATHERED_BYTES = 2
"""Bytes of memory for a FLOP of sparse products: of a row of the decoder, every number is read for two FLOP (ours)."""
_SELECTION_BYTES = 24
"""Bytes that selection moves for one score: it is written, copied, compared and masked in float32 (ours)."""
_DISK = 1e9
"""Bytes per second of a disk that was not measured (ours)."""
_START = {
    "program": 4.0, "models": 3.0, "bridge": 2.0, "optimizer": 1.5, "figures": 1.0, "classifiers": 1.0, "sae_lens": 4.0, "trl": 6.0,
    "page": 2.0,
}  # fmt: skip
HELD = {
    "program": 500_000_000, "models": 80_000_000, "bridge": 40_000_000, "optimizer": 60_000_000, "figures": 40_000_000,
    "classifiers": 40_000_000, "sae_lens": 150_000_000, "trl": 200_000_000, "page": 250_000_000,
}  # fmt: skip
_UNITS = {
    "opened": 0.2, "loaded": 0.2, "weight": 1e-9, "product": 5e-11, "fitted": 5e-7, "sampled": 2e-5, "sae_step": 2e-8, "eigen": 5e-10, "token": 1e-6, "prompt": 1e-4, "hashed": 1e-9, "record": 2e-4, "drawn": 1e-8, "curve": 1e-6, "figure": 0.2, "chart": 0.05,
}  # fmt: skip
"""Of a host that was not measured: Linux with torch 2.13 for CPUs (ours)."""


Rate = Annotated[float, Field(gt=1e-30, lt=1e30, allow_inf_nan=False, strict=True)]
Seconds = Annotated[float, Field(ge=0, lt=1e30, allow_inf_nan=False, strict=True)]
Bytes = Annotated[int, Field(ge=0, lt=10**18, strict=True)]
Width = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,8}$")]
ByWidth = Annotated[Mapping[Width, tuple[Rate, Rate]], Field(min_length=1)]
"""What a calibration file may hold."""
FEW, FULL = 16, {"cpu": 4096, "cuda": 8192}
"""Tokens of the calls whose rates are measured: those of a generation step, and those of a full batch."""


def _between(known: dict[int, float], place: int | float) -> float:
    """The value at a place, linear between known ones in logarithms of both, and constant outside."""
    points = sorted((math.log(size), math.log(value)) for size, value in known.items())
    at = math.log(place)
    if at <= points[0][0]:
        return math.exp(points[0][1])
    for (left, low), (right, high) in pairwise(points):
        if at <= right:
            return math.exp(low + (high - low) * (at - left) / (right - left))
    return math.exp(points[-1][1])


@dataclass(frozen=True)
class Rates:
    """Rates of one device.

    Attributes:
        name: The processor or the card.
        device: ``cpu`` or ``cuda``.
        source: ``measured`` by `mechprobe bench --calibrate`, or ``published``.
        blocks: dtype, or ``tf32`` → width of the residual stream → FLOP per second of whole transformer blocks on `FEW` and on `FULL` tokens.
        heads: dtype, or ``tf32`` → FLOP per second of an unembedding with many ids on `FEW` and on `FULL` tokens.
        training: FLOP per second of the products of a crosscoder's step in float32, as `formulas` counts them.
        sparse: FLOP per second of its products with active latents only, which gather rows.
        selection: Seconds that a step spends on one score, a row and a latent, beside its products.
        bandwidth: Bytes per second of memory.
        call_s: Seconds that one call of a block costs whatever its size.
        step_s: Seconds that a generation step costs beside its blocks.
        write, read: Bytes per second of the disk.
        copy: Bytes per second between host and device.
        start_s: Seconds of each of `KITS`, beyond those of ``program``; a kit that is not installed is missing.
        held: Bytes that a process holds with each kit, likewise.
        units: Seconds of each of `UNITS`.
        memory: Bytes of the device.
        cores: Processor cores of the host.
        crowded: How many times as long a process takes with one thread while as many run on all cores, as one alone with all its threads.
        context: Bytes of the device that are taken before any tensor.
        made: How the rates were measured: versions, threads, load, date.
    """

    name: str
    device: Literal["cpu", "cuda"]
    source: Literal["measured", "published"]
    blocks: Mapping[str, ByWidth]
    heads: Annotated[Mapping[str, tuple[Rate, Rate]], Field(min_length=1)]
    training: Rate
    sparse: Rate
    selection: Seconds
    bandwidth: Rate
    call_s: Seconds
    step_s: Seconds
    write: Rate
    read: Rate
    copy: Rate
    start_s: dict[str, Seconds]
    held: dict[str, Bytes]
    units: dict[str, Seconds]
    memory: Annotated[Bytes, Field(gt=0)]
    cores: Annotated[int, Field(ge=1, lt=10**6, strict=True)] = 1
    crowded: Rate = 1.0
    context: Bytes = 0
    made: dict[str, Any] = field(default_factory=dict)

    def block_rate(self, dtype: str, width: int, n_tokens: int | float = float("inf")) -> float:
        """FLOP per second of blocks of a width on calls of ``n_tokens``.

        The rate is interpolated between the measured widths, in logarithms.
        """
        known = self.blocks.get(dtype) or self.blocks["float32"]
        few, full = (_between({int(size): pair[at] for size, pair in known.items()}, width) for at in (0, 1))
        return self._on(n_tokens, few, full)

    def head_rate(self, dtype: str, n_tokens: int | float = float("inf")) -> float:
        """FLOP per second of an unembedding on calls of ``n_tokens``."""
        return self._on(n_tokens, *(self.heads.get(dtype) or self.heads["float32"]))

    def _on(self, n_tokens: int | float, few: float, full: float) -> float:
        """The rate on ``n_tokens``; the time of a call is linear between `FEW` and `FULL` tokens."""
        least, most = FEW, FULL[self.device]
        if n_tokens >= most:
            return full
        short, long = least / few, most / full  # seconds of a call, for one FLOP a token
        taken = short + max(0.0, n_tokens - least) * (long - short) / (most - least)
        return max(1.0, n_tokens) / max(taken, max(1.0, n_tokens) / full)

    def training_rate(self, precision: str) -> float:
        """FLOP per second of the products of a crosscoder's step with operands in ``precision``.

        Beyond float32 it grows as that of blocks does at the greatest measured width (ours).
        """
        width = max(int(width) for width in self.blocks["float32"])
        return self.training * self.block_rate(precision, width) / self.block_rate("float32", width)

    def slowed(self, processes: int) -> float:
        """How many times as long each of several processes on the cores takes as one alone; linear up to one for each core (ours)."""
        return 1 + (self.crowded - 1) * min(1.0, (processes - 1) / max(1, self.cores - 1)) * max(
            1.0, processes / self.cores
        )

    def started(self, *kits: str) -> float:
        """Seconds until a command has started with these kits."""
        return sum(self.start_s.get(kit, 0.0) for kit in kits)

    def holds(self, *kits: str) -> int:
        """Bytes of a process with these kits."""
        return sum(self.held.get(kit, 0) for kit in kits)

    @classmethod
    def of_card(cls, card: Card) -> "Rates":
        """Rates from published peaks, at the shares that `cards` states."""
        whole = {"float32": card.single, "tf32": card.tf32, "bfloat16": card.half, "float16": card.half}
        return cls(
            name=card.name,
            device="cuda",
            source="published",
            blocks={dtype: {"4096": (PRODUCTS * peak, PRODUCTS * peak)} for dtype, peak in whole.items()},
            heads={dtype: (PRODUCTS * peak, PRODUCTS * peak) for dtype, peak in whole.items()},
            training=PRODUCTS * card.single,
            sparse=MEMORY * card.bandwidth / _GATHERED_BYTES,
            selection=_SELECTION_BYTES / (MEMORY * card.bandwidth),
            bandwidth=MEMORY * card.bandwidth,
            call_s=BLOCK_CALL,
            step_s=STEP_CALL,
            write=_DISK,
            read=_DISK,
            copy=MEMORY * card.copy,
            start_s={**_START, "program": 10.0},
            held={**HELD, "program": 1_000_000_000},
            units=_UNITS,
            memory=card.memory,
            context=_CONTEXT,
        )

    def save(self, path: Path) -> None:
        """Write the calibration file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> "Rates":
        """Read a calibration file.

        Raises:
            ConfigError: It is missing, or is no calibration of this version.
        """
        if not path.is_file():
            raise ConfigError(
                f"There is no calibration in {path}; run `mechprobe bench --calibrate`, or name a card with --card."
            )
        found = _read(path)
        if found is None:
            raise ConfigError(
                f"{path} is no calibration of this version; make it again with `mechprobe bench --calibrate`."
            )
        return found


def _read(path: Path) -> Rates | None:
    """The rates of a file; None where it is no JSON, of another version, or has a value that no machine has."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            return None
        if data.keys() != {each.name for each in fields(Rates)}:
            return None
        found = TypeAdapter(Rates).validate_python(data)
    except (OSError, ValueError, RecursionError, ValidationError):
        return None
    whole = "float32" in found.blocks and "float32" in found.heads and found.units.keys() == set(UNITS)
    return found if whole and {"program", "models"} <= found.start_s.keys() & found.held.keys() else None


def default_place() -> Path:
    """Where the calibration of this machine is: ``$MECHPROBE_CALIBRATION``, else ``mechprobe/calibration.json`` in the user's cache."""
    given = os.environ.get("MECHPROBE_CALIBRATION")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else cache / "mechprobe" / "calibration.json"
