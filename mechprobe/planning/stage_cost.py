"""The cost of one stage, and costs as a table."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from mechprobe.errors import ConfigError
from mechprobe.formatting import byte_size, duration
from mechprobe.planning.rates import Rates

_MOST = {"flop": 1e32, "device_bytes": 1e15, "host_bytes": 1e15, "disk_bytes": 1e18, "seconds": 1e12}
"""What no stage takes: a cost beyond it comes from a wrong setting (ours; 1e12 s are 32,000 years)."""

_UNIT = {
    "flop": "FLOP", "device_bytes": "bytes of memory", "host_bytes": "bytes of memory", "disk_bytes": "bytes of disk",
    "seconds": "seconds",
}  # fmt: skip


@contextmanager
def countable() -> Iterator[None]:
    """Refuse settings whose numbers are too large to compute with."""
    try:
        yield
    except OverflowError:
        raise ConfigError(
            "A number in the settings is too large for a plan; correct counts such as n_tokens or d_sae."
        ) from None


@dataclass(frozen=True)
class StageCost:
    """What a stage costs on one device. A cost that no machine can bear raises `ConfigError`.

    Attributes:
        stage: Its name.
        flop: FLOP of its products.
        device_bytes: Peak memory of the device; that of the process where the device is the CPU.
        host_bytes: Peak memory of the largest process.
        disk_bytes: Bytes that stay on the disk.
        seconds: Time; None where the rates of the device are unknown.
        devices: Devices that share the work.
        note: What the reader should know, as a sentence.
    """

    stage: str
    flop: int | float
    device_bytes: int
    host_bytes: int
    disk_bytes: int
    seconds: int | float | None
    devices: int = 1
    note: str = ""

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value = getattr(self, name) or 0
            if not value < most:
                raise ConfigError(
                    f"{self.stage} would take {value:.2g} {_UNIT[name]}, more than any machine bears; "
                    "correct counts such as n_tokens, max_new_tokens or d_sae."
                )

    def to_dict(self) -> dict[str, Any]:
        """The cost as JSON values."""
        return asdict(self)


def table(costs: Sequence[StageCost], rates: Rates) -> list[str]:
    """The costs in columns; on a CPU, device and process are one."""
    on_card = rates.device == "cuda"
    rows = [["stage", "FLOP", *(["card memory", "process"] if on_card else ["memory"]), "disk", "time", ""]]
    for cost in costs:
        memory = [byte_size(cost.device_bytes) if cost.device_bytes else "–"] if on_card else []
        rows.append(
            [
                cost.stage,
                *flop_disk_time(cost, [*memory, byte_size(cost.host_bytes) if cost.host_bytes else "–"]),
                cost.note,
            ]
        )
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    if len(costs) > 1:
        whole = f"{sum(cost.flop for cost in costs):.2g}"
        blank = [""] * (2 if on_card else 1)
        rows.append(
            [
                "all",
                whole,
                *blank,
                byte_size(sum(c.disk_bytes for c in costs)),
                duration(sum(known)) if known else "–",
                "",
            ]
        )
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def flop_disk_time(cost: StageCost, memory: Sequence[str]) -> list[str]:
    """FLOP, the given memory, disk and time of a stage, as text."""
    time = "–" if cost.seconds is None else duration(cost.seconds)
    return [f"{cost.flop:.2g}", *memory, byte_size(cost.disk_bytes) if cost.disk_bytes else "–", time]
