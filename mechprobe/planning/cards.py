"""Published peaks of graphics cards, and the share of them that a plan expects."""

from dataclasses import dataclass

from mechprobe.errors import ConfigError

PRODUCTS, MEMORY = 0.45, 0.7
"""Share of the peak product rate and of the memory bandwidth that a plan expects (ours). `mechprobe bench --calibrate` replaces both by
a measurement."""
BLOCK_CALL, STEP_CALL = 4e-4, 3e-3
"""Seconds of Python and kernel launches for a block in eager mode, and for the rest of a generation step (ours)."""


@dataclass(frozen=True)
class Card:
    """Peaks of a card from its data sheet, without sparsity.

    Attributes:
        name: Its name.
        half: FLOP per second of products in bfloat16 or float16.
        single: FLOP per second in float32, without TF32.
        bandwidth: Bytes per second of its memory.
        memory: Bytes of its memory.
        copy: Bytes per second between host and card (PCIe 4 or 5, 16 lanes).
    """

    name: str
    half: float
    single: float
    bandwidth: float
    memory: int
    copy: float


_GB = 10**9
CARDS = {
    card.name: card
    for card in (
        Card("A100", 312e12, 19.5e12, 2.039e12, 80 * _GB, 25e9),
        Card("H100", 989e12, 67e12, 3.35e12, 80 * _GB, 50e9),
        Card("H200", 989e12, 67e12, 4.8e12, 141 * _GB, 50e9),
        Card("L4", 121e12, 30.3e12, 0.3e12, 24 * _GB, 25e9),
        Card("L40S", 362e12, 91.6e12, 0.864e12, 48 * _GB, 25e9),
        Card("4090", 165e12, 82.6e12, 1.008e12, 24 * _GB, 25e9),
    )
}
"""NVIDIA's data sheets, without sparsity (their products in 16 bits are halved where they state them with it):

* A100 80 GB SXM: nvidia-a100-datasheet, nvidia-1758950-r4 (312, 19.5 TFLOPS; 2,039 GB/s).
* H100 SXM: NVIDIA H100 Tensor Core GPU, table of the product page (1,979 with sparsity, 67 TFLOPS; 3.35 TB/s).
* H200 SXM: the chip of the H100 with 141 GB and 4.8 TB/s (product page).
* L4: 242 TFLOPS with sparsity, 30.3 in float32; 300 GB/s (product page).
* L40S: 362.05, 91.6 TFLOPS; 864 GB/s (nvidia-l40s-datasheet).
* GeForce RTX 4090: 165.2 TFLOPS with float32 sums, 82.6; 1,008 GB/s (NVIDIA Ada GPU Architecture, appendix A).
"""


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
