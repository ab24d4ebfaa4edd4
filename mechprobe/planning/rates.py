"""How fast a device is, and what a process holds before it begins: measured on this machine, or from the data sheet of a card."""

import math
import os
from dataclasses import asdict, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

from mechprobe.errors import ConfigError
from mechprobe.files import read_json, write_json
from mechprobe.planning.cards import BLOCK_CALL, MEMORY, PRODUCTS, STEP_CALL, Card

FORMAT = 1
_CONTEXT = 600 * 10**6
"""Bytes that CUDA and its libraries take on a card (ours)."""
_DISK = 1e9
"""Bytes per second of a disk that was not measured (ours)."""


@dataclass(frozen=True)
class Rates:
    """Rates of one device.

    Attributes:
        name: The processor or the card.
        device: ``cpu`` or ``cuda``.
        source: ``measured`` by `mechprobe bench --calibrate`, or ``published``.
        blocks: dtype → width of the residual stream → FLOP per second of whole transformer blocks with full batches.
        training: FLOP per second of the products of a crosscoder's step, as `formulas` counts them.
        bandwidth: Bytes per second of memory.
        call_s: Seconds that one call of a block costs whatever its size.
        step_s: Seconds that a generation step costs beside its blocks.
        write, read: Bytes per second of the disk.
        copy: Bytes per second between host and device.
        start_s: Seconds until a command has imported everything.
        program, models, bridge: Bytes that a process holds with the stages imported, with transformers and pandas in use, and
            with TransformerBridge.
        memory: Bytes of the device.
        context: Bytes of the device that are taken before any tensor.
        made: How the rates were measured: versions, threads, load, date.
    """

    name: str
    device: Literal["cpu", "cuda"]
    source: Literal["measured", "published"]
    blocks: dict[str, dict[str, float]]
    training: float
    bandwidth: float
    call_s: float
    step_s: float
    write: float
    read: float
    copy: float
    start_s: float
    program: int
    models: int
    bridge: int
    memory: int
    context: int = 0
    made: dict[str, Any] = field(default_factory=dict)

    def block_rate(self, dtype: str, width: int) -> float:
        """FLOP per second of blocks of a width, interpolated between the widths that were measured, in logarithms."""
        known = self.blocks.get(dtype) or self.blocks["float32"]
        points = sorted((math.log(int(size)), math.log(rate)) for size, rate in known.items())
        place = math.log(width)
        if place <= points[0][0]:
            return math.exp(points[0][1])
        for (left, low), (right, high) in pairwise(points):
            if place <= right:
                return math.exp(low + (high - low) * (place - left) / (right - left))
        return math.exp(points[-1][1])

    @classmethod
    def of_card(cls, card: Card) -> "Rates":
        """Rates from published peaks, at the shares that `cards` states."""
        whole = {"float32": card.single, "bfloat16": card.half, "float16": card.half}
        return cls(
            name=card.name,
            device="cuda",
            source="published",
            blocks={dtype: {"4096": PRODUCTS * peak} for dtype, peak in whole.items()},
            training=PRODUCTS * card.single,
            bandwidth=MEMORY * card.bandwidth,
            call_s=BLOCK_CALL,
            step_s=STEP_CALL,
            write=_DISK,
            read=_DISK,
            copy=MEMORY * card.copy,
            start_s=20.0,
            program=1_000_000_000,
            models=1_500_000_000,
            bridge=1_600_000_000,
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
        data = read_json(path)
        known = {each.name for each in fields(cls)}
        if not isinstance(data, dict) or data.get("format") != FORMAT or known - data.keys():
            raise ConfigError(
                f"{path} is no calibration of this version; make it again with `mechprobe bench --calibrate`."
            )
        return cls(**{name: data[name] for name in known})


def default_place() -> Path:
    """Where the calibration of this machine is: ``$MECHPROBE_CALIBRATION``, else ``mechprobe/calibration.json`` in the user's cache."""
    given = os.environ.get("MECHPROBE_CALIBRATION")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else cache / "mechprobe" / "calibration.json"
