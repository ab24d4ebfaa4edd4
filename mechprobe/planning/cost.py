"""The sum that the steps of a stage add to."""

import math

from mechprobe.planning import formulas
from mechprobe.planning.formulas import Number
from mechprobe.planning.rates import Rates
from mechprobe.planning.shapes import BYTES, ModelShape
from mechprobe.planning.stage_cost import StageCost


class Meter:
    """Adds up the steps of one stage.

    Steps of models, crosscoders and stores are shared by the devices; ``alone`` work of the host, loading and the start are done by each
    process, or by the first one.
    """

    def __init__(self, stage: str, rates: Rates, dtype: str, *kits: str, tf32: bool = False) -> None:
        self.stage, self.rates, self.dtype = stage, rates, dtype
        self._forward_dtype = "tf32" if tf32 and dtype == "float32" and rates.device == "cuda" else dtype
        self.flop, self.disk = 0.0, 0
        self.shared, self.alone = 0.0, rates.started(*kits)
        self._base = rates.holds(*kits)
        self._held, self._device, self._host = 0, 0, 0

    def load(self, shape: ModelShape, times: Number = 1, *, beside: int = 0) -> None:
        """Read the weights of a model, and hand them to the device; pages that a run reads again are still in memory.

        The pages of the files are in memory together with the weights, and with those of ``beside`` other models.
        """
        stored = shape.parameters * BYTES.get(shape.stored_as, 4)
        self.alone += stored / self.rates.read
        self.work("weight", times * stored)
        self.hold(device=(1 + beside) * shape.weight_bytes(self.dtype), mapped=stored)
        if self.rates.device == "cuda":
            self.alone += times * shape.weight_bytes(self.dtype) / self.rates.copy

    def forward(
        self,
        shape: ModelShape,
        n_tokens: Number,
        length: Number,
        n_batches: Number,
        *,
        layers: Number | None = None,
        passes: Number = 1,
    ) -> None:
        """Forward passes: ``passes`` forward passes' worth of FLOP, so a backward pass counts as one or two more."""
        count = shape.n_layers if layers is None else layers
        n_batches = max(1.0, n_batches)
        flop = passes * formulas.forward_flop(shape, n_tokens, length, count)
        self.flop += flop
        forward, own = (
            self.rates.block_rate(dtype, shape.d_model, n_tokens / n_batches)
            for dtype in (self._forward_dtype, self.dtype)
        )  # TF32 is for forward passes only
        seconds = flop / passes * (1 / forward + (passes - 1) / own)
        self.shared += seconds + passes * n_batches * count * self.rates.call_s

    def head(self, shape: ModelShape, n_positions: Number, *, passes: Number = 1) -> None:
        """Unembedding, and about six float64 passes over the log-probabilities (ours)."""
        flop = passes * formulas.head_flop(shape, n_positions)
        self.flop += flop
        moved = passes * 6 * 8 * n_positions * shape.n_ids
        self.shared += flop / self.rates.head_rate(self.dtype) + moved / self.rates.bandwidth

    def unembed(self, shape: ModelShape, n_positions: Number) -> None:
        """Unembedding, and two float32 passes over the logits (ours)."""
        flop = formulas.head_flop(shape, n_positions)
        self.flop += flop
        self.shared += flop / self.rates.head_rate(self.dtype)
        self.move(2 * formulas.FLOAT * n_positions * shape.n_ids)

    def generate(
        self,
        shape: ModelShape,
        n: Number,
        prompt: Number,
        new: Number,
        batch: int,
        *,
        times: Number = 1,
        sampled: bool = False,
    ) -> None:
        """Responses of ``new`` tokens to ``n`` prompts; a step reads the weights and copies the cache."""
        if n <= 0:
            return
        n_batches = math.ceil(n / batch)
        rows = n / n_batches
        self.forward(shape, times * n * prompt, prompt, times * n_batches)
        blocks, head = formulas.forward_flop(shape, n * new, prompt + new / 2), formulas.head_flop(shape, n * new)
        cache = 3 * formulas.kv_bytes(shape, self.dtype, max(1, round(rows)), round(prompt + new / 2))
        logits = 8 * rows * shape.n_ids * formulas.FLOAT
        self.flop += times * (blocks + head)
        at_blocks = blocks / self.rates.block_rate(self._forward_dtype, shape.d_model, rows)
        at_head = head / self.rates.head_rate(self._forward_dtype, rows)
        read = shape.weight_bytes(self.dtype) / self.rates.bandwidth
        products = max((at_blocks + at_head) / (n_batches * new), read)
        step = (
            products + (cache + logits) / self.rates.bandwidth + shape.n_layers * self.rates.call_s + self.rates.step_s
        )
        self.shared += times * n_batches * new * step
        self.work("record", times * n)
        if sampled:
            self.work("sampled", times * n * new)

    def products(self, flop: Number, precision: str = "float32") -> None:
        """Products of a crosscoder, with operands in ``precision``."""
        self.flop += flop
        self.shared += flop / self.rates.training_rate(precision)

    def gather(self, flop: Number) -> None:
        """Products of a crosscoder with active latents only."""
        self.flop += flop
        self.shared += flop / self.rates.sparse

    def select(self, n_scores: Number) -> None:
        """Choose the active ones among scores of a crosscoder, a row and a latent each."""
        self.shared += n_scores * self.rates.selection

    def move(self, n_bytes: Number) -> None:
        """Pass bytes through the memory of the device."""
        self.shared += n_bytes / self.rates.bandwidth

    def write(self, n_bytes: Number) -> None:
        """Write bytes that stay to the one disk, and hash them, which each process does for its own."""
        self.disk += round(n_bytes)
        self.alone += n_bytes / self.rates.write
        self.shared += n_bytes * self.rates.units["hashed"]

    def read(self, n_bytes: Number) -> None:
        """Read bytes from the disk."""
        self.shared += n_bytes / self.rates.read

    def check(self, n_bytes: Number) -> None:
        """Hash the files of earlier stages, which are in memory or are read."""
        self.work("hashed", n_bytes)

    def double_products(self, n: Number) -> None:
        """``n`` multiplications and additions of float64 matrices; on a card at half the rate of float32 (ours: of cards for computing)."""
        self.flop += 2 * n
        on_host = self.rates.device == "cpu"
        self.shared += n * self.rates.units["product"] if on_host else 4 * n / self.rates.training

    def work(self, unit: str, n: Number) -> None:
        """``n`` units of work of the host, see `mechprobe.planning.rates.UNITS`."""
        self.alone += n * self.rates.units.get(unit, 0.0)

    def take(self, seconds: Number) -> None:
        """Seconds that a plan of the stage has measured by itself."""
        self.alone += seconds

    def hold(self, *, device: Number = 0, host: Number = 0, mapped: Number = 0) -> None:
        """Hold bytes at the same time, beside what the process and the device always hold; the largest call counts.

        ``mapped`` are pages of files, which the system takes back where memory is short; at most half of it is expected to hold them.
        """
        self._device = max(self._device, round(device))
        limit = self.rates.memory / 2 if self.rates.device == "cpu" else 64e9
        self._host = max(self._host, round(host + min(mapped, limit) + (device if self.rates.device == "cpu" else 0)))

    def cost(self, *, devices: int = 1, note: str = "", known: bool = True) -> StageCost:
        """The sum. ``devices`` devices divide the shared steps."""
        host = self._base + self._host
        device = host if self.rates.device == "cpu" else self.rates.context + self._device
        seconds = self.alone + self.shared / devices if known else None
        return StageCost(self.stage, self.flop, device, host, self.disk, seconds, devices, note)
