"""What the setting of arXiv 2604.25011 costs on Qwen3-4B: operations, bytes and GPU hours of every stage.

    python experiments/paper_a/cost.py                       # experiments/paper_a/qwen3_4b.toml on an H100
    python experiments/paper_a/cost.py --set cache.max_tokens=100000000 --lm-tflops 250 --json runs/cost.json

Nothing is measured here: operations and bytes follow from shapes, hours from the rates that are printed with them (all
assumptions, each an option). Lengths are upper bounds: every response is taken to run to its limit.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from math import ceil
from pathlib import Path

import numpy as np

import mechprobe as mp
from mechprobe.files import write_json
from mechprobe.interventions.conditions.plan import plan
from mechprobe.selection.scores import Scores
from sae_training import CrosscoderConfig, TrainConfig

HERE = Path(__file__).parent
BF16, FP32 = 2, 4


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer with grouped-query attention, a gated MLP and tied embeddings; the defaults: Qwen3-4B."""

    d_model: int = 2560
    n_layers: int = 36
    d_mlp: int = 9728
    n_heads: int = 32
    n_kv_heads: int = 8
    d_head: int = 128
    vocab: int = 151_936

    @property
    def block_parameters(self) -> int:
        """Number of parameters in the matrices of one block."""
        attention = self.d_model * self.d_head * (2 * self.n_heads + 2 * self.n_kv_heads)
        return attention + 3 * self.d_model * self.d_mlp

    @property
    def parameters(self) -> int:
        """Number of parameters of all matrices; embedding and unembedding share theirs."""
        return self.n_layers * self.block_parameters + self.vocab * self.d_model

    @property
    def kv_bytes(self) -> int:
        """Bytes of the keys and values of one token in all blocks, in bfloat16."""
        return 2 * self.n_layers * self.n_kv_heads * self.d_head * BF16

    def forward_flop(self, context: float | int, *, blocks: int | None = None) -> float:
        """Operations for one token after ``context`` others: 2 per weight, and 4 per attended key and channel.

        ``blocks`` stops the pass there, before the unembedding.
        """
        n_blocks = self.n_layers if blocks is None else blocks
        flop = n_blocks * (2 * self.block_parameters + 4 * context * self.n_heads * self.d_head)
        return flop + (2 * self.vocab * self.d_model if blocks is None else 0)


@dataclass(frozen=True)
class Rates:
    """Assumed rates of one H100 (80 GB), none of them measured with this code."""

    lm_tflops: float | int = 400
    """TFLOP/s of a language model's forward pass in bfloat16 (peak 989)."""
    crosscoder_tflops: float | int = 45
    """TFLOP/s of the crosscoder's products in float32 without TF32 (peak 67)."""
    memory_tb_per_s: float | int = 2.7
    """TB/s of the device memory (peak 3.35)."""
    disk_gb_per_s: float | int = 2.0
    """GB/s at which the activation store is read and written."""
    block_ms: float | int = 0.8
    """Milliseconds to launch one block of eager attention in a decoding step, independent of the batch."""
    prompt_tokens: int = 200
    """Mean length of a task's prompt."""
    n_tasks: int = 8
    """Tasks in the file."""
    gained: int = 128
    """Samples of G_t read for each selecting task."""


@dataclass(frozen=True)
class Cost:
    """Cost of one stage."""

    stage: str
    what: str
    pflop: float
    hours: float
    store_tb: float = 0.0


def crosscoder_parameters(n_models: int, d_model: int, d_sae: int) -> int:
    """Number of parameters of encoder and decoder of every model, without biases."""
    return 2 * n_models * d_model * d_sae


def dense_step_flop(n_models: int, d_model: int, d_sae: int) -> int:
    """Operations per token of a dense training step without the gradient of its input: five products of 2 D F."""
    return 10 * n_models * d_model * d_sae


def train_cost(n_models: int, d_model: int, d_sae: int, n_tokens: int, batch: int, rates: Rates) -> tuple[float, float]:
    """``(operations, hours)`` of the products and of Adam's 28 bytes per parameter and step; the data are read meanwhile."""
    flop = float(dense_step_flop(n_models, d_model, d_sae)) * n_tokens
    adam = 28 * crosscoder_parameters(n_models, d_model, d_sae) * ceil(n_tokens / batch)
    work = flop / (rates.crosscoder_tflops * 1e12) + adam / (rates.memory_tb_per_s * 1e12)
    reading = n_tokens * n_models * d_model * BF16 / (rates.disk_gb_per_s * 1e9)
    return flop, max(work, reading) / 3600


def decoding_cost(
    shape: ModelShape, n_samples: int, new_tokens: int, batch: int, blocks: int, rates: Rates
) -> tuple[float, float]:
    """``(operations, hours)`` of generation to the length limit through ``blocks`` blocks, prompts included.

    A step takes the longest of launching, of arithmetic, and of reading the weights and the cached keys and values.
    """
    context = rates.prompt_tokens + new_tokens / 2
    share = blocks / shape.n_layers
    per_token = shape.forward_flop(context, blocks=None if blocks == shape.n_layers else blocks)
    in_batch = min(batch, n_samples)
    arithmetic = in_batch * per_token / (rates.lm_tflops * 1e12)
    read = share * (BF16 * shape.parameters + in_batch * context * shape.kv_bytes)
    step = max(blocks * rates.block_ms / 1e3, arithmetic, read / (rates.memory_tb_per_s * 1e12))
    prompts = n_samples * rates.prompt_tokens * per_token
    flop = n_samples * new_tokens * per_token + prompts
    seconds = ceil(n_samples / batch) * new_tokens * step + prompts / (rates.lm_tflops * 1e12)
    return flop, seconds / 3600


def n_conditions(config: mp.RunConfig) -> int:
    """Number of conditions that ``intervene`` runs on a selection of 50 features, from its own planning function."""
    settings, ones = config.intervene, np.ones(200)
    scores = Scores(("a",), (1,), ones[None], ones[None], ones, ones, ones, ones, ones, ones[None] > 0)
    drawn = tuple((draw,) for draw in range(settings.n_random))
    chosen = mp.Selection(
        features=tuple(range(50)),
        site=str(mp.Site(layer=0)),
        rule=settings.features or "top50",
        ranking=settings.ranking or "joint",
        agnostic=(),
        n_agnostic=0,
        controls=drawn,
        transplant_controls=drawn,
        note="",
        crosscoder="",
        scores=scores,
        threshold=0.2,
    )
    others = {f"by {ranking}": chosen for ranking in settings.compare if ranking != settings.ranking}
    return len(plan(chosen, others, settings))


class Setting:
    """The numbers of a run configuration that determine its cost."""

    def __init__(self, config: mp.RunConfig, shape: ModelShape, rates: Rates) -> None:
        self.config, self.shape, self.rates = config, shape, rates
        self.n_models = len(config.models)
        self.site = mp.Site.parse(config.cache.sites[0])
        sae = config.train_sae
        names = {"n_models": self.n_models, "d_model": shape.d_model, "model_names": tuple(config.models)}
        self.d_sae = sae.d_sae or CrosscoderConfig.paper(**names).d_sae
        schedule = TrainConfig.paper(
            **{k: v for k, v in (("n_tokens", sae.n_tokens), ("batch_size", sae.batch_size)) if v}
        )
        self.n_tokens, self.batch = schedule.n_tokens, schedule.batch_size
        self.n_rows = config.cache.max_tokens or self.n_tokens
        self.length = config.cache.max_length or 512

    def generating(self, n_samples: int, batch: int, *, siblings: int = 0) -> tuple[float, float]:
        """Cost of generation by one model, with siblings up to the site."""
        new_tokens = self.config.intervene.max_new_tokens or self.config.tasks.max_new_tokens
        whole = decoding_cost(self.shape, n_samples, new_tokens, batch, self.shape.n_layers, self.rates)
        part = decoding_cost(self.shape, n_samples, new_tokens, batch, self.site.layer + 1, self.rates)
        return whole[0] + siblings * part[0], whole[1] + siblings * part[1]

    def recording(self, n_models: int, n_rows: int) -> tuple[float, float, float]:
        """``(operations, hours, bytes)`` of the store: forward passes that stop after the site."""
        per_token = self.shape.forward_flop(self.length / 2, blocks=self.site.layer + 1)
        flop = n_models * n_rows * per_token
        n_bytes = float(n_models * n_rows * self.shape.d_model * BF16)
        seconds = max(flop / (self.rates.lm_tflops * 1e12), n_bytes / (self.rates.disk_gb_per_s * 1e9))
        return flop, seconds / 3600, n_bytes

    def costs(self) -> list[Cost]:
        """Costs of every stage of the run."""
        config, rates = self.config, self.rates
        n_sites = self.shape.n_layers if config.localize.sites == "all" else len(config.localize.sites)
        n_patched = rates.n_tasks * (config.localize.n_per_task or 500)
        one = self.generating(n_patched, config.localize.batch_size)
        two = self.generating(n_patched, config.localize.batch_size, siblings=1)
        located = [2 * a + 2 * n_sites * b for a, b in zip(one, two, strict=True)]
        flop, hours, n_bytes = self.recording(self.n_models, self.n_rows)
        trained = train_cost(self.n_models, self.shape.d_model, self.d_sae, self.n_tokens, self.batch, rates)
        read = min(config.features.max_rows or self.n_rows, self.n_rows)
        described = float(read * (1 + self.n_models) * 2 * self.n_models * self.shape.d_model * self.d_sae)
        spliced = (
            self.n_models * 3 * config.features.ce_samples * self.length * self.shape.forward_flop(self.length / 2)
        )
        answered = rates.n_tasks * (config.evaluate.n_per_task or 500)
        judged = [self.n_models * x for x in self.generating(answered, config.evaluate.batch_size)]
        n_select = len(config.select.tasks or ()) * min(config.select.max_samples, rates.gained)
        length = rates.prompt_tokens + config.tasks.max_new_tokens
        selected = self.n_models * n_select * length * self.shape.forward_flop(length / 2, blocks=self.site.layer + 1)
        conditions = n_conditions(config)
        tested = rates.n_tasks * (config.intervene.n_per_task or answered // 2)
        edited = [
            conditions * x for x in self.generating(tested, config.intervene.batch_size, siblings=self.n_models - 1)
        ]
        lm, products = rates.lm_tflops * 3.6e15, rates.crosscoder_tflops * 3.6e15
        return [
            Cost("localize", f"{2 + 2 * n_sites} passes × {n_patched:,} samples", located[0] / 1e15, located[1]),
            Cost("cache", f"{self.n_models} models × {self.n_rows:,} tokens", flop / 1e15, hours, n_bytes / 1e12),
            Cost("train-sae", f"{self.n_tokens:,} tokens, {self.d_sae:,} features", trained[0] / 1e15, trained[1]),
            Cost("features", f"{read:,} tokens × {1 + self.n_models} read-outs", (described + spliced) / 1e15,
                 described / products + spliced / lm),
            Cost("evaluate", f"{self.n_models} models × {answered:,} samples", judged[0] / 1e15, judged[1]),
            Cost("select", f"{self.n_models} models × {n_select:,} samples", selected / 1e15, selected / lm),
            Cost("intervene", f"{conditions:,} conditions × {tested:,} samples", edited[0] / 1e15, edited[1]),
        ]  # fmt: skip

    def dynamics(self, checkpoints: int) -> list[Cost]:
        """Costs of the paper's training dynamics: checkpoints of both arms, the last of which are the models of the run."""
        more, pairs = 2 * (checkpoints - 1), 2 * checkpoints
        flop, hours, n_bytes = self.recording(more, self.n_rows)
        every = train_cost(1 + pairs, self.shape.d_model, self.d_sae, self.n_tokens, self.batch, self.rates)
        one = train_cost(2, self.shape.d_model, self.d_sae, self.n_tokens, self.batch, self.rates)
        return [
            Cost("checkpoints", f"{more} more models in the store", flop / 1e15, hours, n_bytes / 1e12),
            Cost("one dictionary", f"base and {pairs} checkpoints", every[0] / 1e15, every[1]),
            Cost("pairs, as the paper", f"{pairs} dictionaries of base and one", pairs * one[0] / 1e15, pairs * one[1]),
        ]

    def memory(self) -> list[str]:
        """Device memory of the two largest stages, in GB."""
        parameters = crosscoder_parameters(self.n_models, self.shape.d_model, self.d_sae)
        training = 16 * parameters + 4 * FP32 * self.batch * self.d_sae
        new_tokens = self.config.intervene.max_new_tokens or self.config.tasks.max_new_tokens
        cached = self.config.intervene.batch_size * (self.rates.prompt_tokens + new_tokens) * self.shape.kv_bytes
        passes = 1 + (self.n_models - 1) * (self.site.layer + 1) / self.shape.n_layers
        editing = self.n_models * BF16 * self.shape.parameters + cached * passes + FP32 * parameters
        return [
            f"training   {training / 1e9:5.0f} GB (weights, gradient, two moments of {parameters / 1e6:,.0f}M parameters; activations)",
            f"editing    {editing / 1e9:5.0f} GB ({self.n_models} models in bfloat16, keys and values of {passes:.1f} passes, the crosscoder)",
        ]  # fmt: skip


def table(costs: Sequence[Cost]) -> list[str]:
    """Format costs as lines of text, with their sum below."""
    rows = [(c.stage, c.what, c.pflop, c.hours, c.store_tb) for c in costs]
    rows.append(("sum", "", *(sum(row[k] for row in rows) for k in (2, 3, 4))))  # type: ignore[misc]
    lines = [f"{'stage':<20} {'what':<44} {'PFLOP':>12} {'GPU hours':>10} {'store':>9}"]
    for stage, what, pflop, hours, store in rows:
        lines.append(f"{stage:<20} {what:<44} {pflop:>12,.0f} {hours:>10.1f} {f'{store:.2f} TB' if store else '':>9}")
    return lines


def main() -> None:
    """Print the costs, and write them as JSON with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=HERE / "qwen3_4b.toml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument(
        "--checkpoints", type=int, default=5, help="Checkpoints of each arm (the paper's: every 1/5 epoch)."
    )
    parser.add_argument("--json", type=Path)
    for field in fields(Rates):
        kind = int if isinstance(field.default, int) and field.name in ("prompt_tokens", "n_tasks", "gained") else float
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default)
    given = parser.parse_args()
    rates, shape = Rates(**{field.name: getattr(given, field.name) for field in fields(Rates)}), ModelShape()
    try:
        setting = Setting(mp.RunConfig.build(given.config, given.set), shape, rates)
        costs, dynamics = setting.costs(), setting.dynamics(given.checkpoints)
    except mp.MechprobeError as error:
        parser.exit(2, f"cost: {error}\n")
    print("Assumed:", ", ".join(f"{name} {value}" for name, value in asdict(rates).items()))
    print("Model:  ", ", ".join(f"{name} {value:,}" for name, value in asdict(shape).items()))
    print(
        f"         {shape.parameters / 1e9:.2f}G parameters; to {setting.site}: {shape.forward_flop(setting.length / 2, blocks=setting.site.layer + 1) / 1e9:.2f} GFLOP a token"
    )
    print("\nThe run\n" + "\n".join(table(costs)))
    print("\nIts training dynamics (mechprobe emergence), beside it\n" + "\n".join(table(dynamics)))
    print("\nDevice memory\n" + "\n".join(setting.memory()))
    if given.json:
        write_json(
            given.json,
            {"rates": asdict(rates), "run": [asdict(c) for c in costs], "dynamics": [asdict(c) for c in dynamics]},
        )


if __name__ == "__main__":
    main()
