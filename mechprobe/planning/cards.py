"""Peaks of graphics cards, and the share of them that a plan expects."""

from dataclasses import dataclass

from mechprobe.errors import ConfigError

PRODUCTS, MEMORY = 0.45, 0.7
"""Share of the peak product rate and of the memory bandwidth that a plan expects (ours). `mechprobe bench --calibrate` replaces both by
a measurement."""
BLOCK_CALL, STEP_CALL = 4e-4, 3e-3
"""Seconds of Python and kernel launches for a block in eager mode, and for the rest of a generation step (ours)."""


@dataclass(frozen=True)
class Card:
    """Peaks of a card, without sparsity.

    Attributes:
        name: Its name.
        half: FLOP per second of products in bfloat16 or float16, with sums in float32.
        tf32: FLOP per second of products in TF32.
        single: FLOP per second in float32, without TF32.
        bandwidth: Bytes per second of its memory.
        memory: Bytes of its memory.
        copy: Bytes per second between host and card: about 80 % of PCIe 4 or 5 with 16 lanes (ours).
    """

    name: str
    half: float
    tf32: float
    single: float
    bandwidth: float
    memory: int
    copy: float


_GB = 10**9
CARDS = {
    card.name: card
    for card in (
        Card("A100", 312e12, 156e12, 19.5e12, 2.039e12, 80 * _GB, 25e9),
        Card("H100", 989e12, 494.7e12, 67e12, 3.35e12, 80 * _GB, 50e9),
        Card("H200", 989e12, 494.7e12, 67e12, 4.8e12, 141 * _GB, 50e9),
        Card("L4", 121e12, 60e12, 30.3e12, 0.3e12, 24 * _GB, 25e9),
        Card("L40S", 362e12, 183e12, 91.6e12, 0.864e12, 48 * _GB, 25e9),
        Card("4090", 165e12, 82.6e12, 82.6e12, 1.008e12, 24 * _GB, 25e9),
    )
}
"""Peaks as pages of other people repeat them; no document of NVIDIA was read. Products with sparsity are halved.

* A100 80 GB SXM and H100 SXM: tables of glennklockwood.com/garden/processors, which name NVIDIA's documents.
* L40S: table of a dealer, mullet.se.
* H200: the chip of the H100 with 141 GB and 4.8 TB/s, by several pages of news and dealers.
* L4: 300 GB/s, 30.3 TFLOPS, and 120 TFLOPS of TF32 with sparsity by a dealer, store.sourcecode.com. The rate in 16 bits is twice that of
  TF32, rounded as the other values of the chip.
* 4090: waredb.com, whose values follow from the number of units and the clock.

H200, L4 and 4090 are therefore not verified.
"""
UNVERIFIED = ("H200", "L4", "4090")
"""Cards whose peaks stand on no table that names its source."""


def card_named(name: str) -> Card:
    """A card by its name, in any case and with or without ``RTX``.

    Raises:
        ConfigError: The card is unknown.
    """
    wanted = name.upper().removeprefix("RTX").strip(" -_")
    if wanted not in CARDS:
        raise ConfigError(
            f"Card '{name}' is unknown; give {', '.join(CARDS)}, or run `mechprobe bench --calibrate` on it and give --calibration FILE."
        )
    return CARDS[wanted]
