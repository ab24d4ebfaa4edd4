"""The cost of `mechprobe posttrain`."""

from dataclasses import dataclass

from mechprobe.planning import formulas
from mechprobe.planning.cost import Meter
from mechprobe.planning.rates import Rates
from mechprobe.planning.shapes import BYTES, ModelShape
from mechprobe.planning.stage_cost import StageCost

_BACKWARD = 3
"""Forward passes' worth of FLOP of a forward and a backward pass with gradients of the weights."""


@dataclass(frozen=True)
class TrainingWork:
    """What one arm does.

    Attributes:
        method: ``sft`` or ``grpo``.
        steps: Optimizer steps.
        responses: Responses of a step.
        micro: Responses of a forward pass.
        prompt, response: Mean number of tokens of a prompt, and of a response; the longest allowed where a model writes it.
        sampled: Responses that are sampled before the training.
        trained: Parameters that are trained.
        saved: Models that are written, the last one included.
        states: States that are written.
        again: Whether activations are computed again in the backward pass.
        adapters: Whether adapters are trained and saved, not the weights.
    """

    method: str
    steps: int
    responses: int
    micro: int
    prompt: int | float
    response: int | float
    sampled: int
    trained: int
    saved: int
    states: int
    again: bool = False
    adapters: bool = False


def training_cost(shape: ModelShape, work: TrainingWork, rates: Rates, *, known: bool = True) -> StageCost:
    """FLOP, memory, disk and time of one arm, whose weights are in float32."""
    dtype, length = "float32", work.prompt + work.response
    meter = Meter(f"posttrain {work.method}", rates, dtype, "program", "models", "optimizer", "trl")
    meter.load(shape)
    meter.work("loaded", 1)
    meter.work("opened", 1)
    meter.generate(shape, work.sampled, work.prompt, work.response, 256, sampled=True)
    tokens = work.steps * work.responses * length
    passes = work.steps * work.responses / work.micro
    if work.method == "grpo":
        meter.generate(shape, work.responses, work.prompt, work.response, work.responses, times=work.steps)
        meter.forward(shape, tokens, length, passes)
        meter.head(shape, work.steps * work.responses * work.response)
    meter.forward(shape, tokens, length, passes, passes=_BACKWARD + work.again)
    meter.head(shape, tokens, passes=_BACKWARD)
    meter.move(work.steps * (formulas.optimizer_bytes(work.trained) + 3 * formulas.FLOAT * work.trained))
    meter.work(
        "weight", 3 * formulas.FLOAT * work.trained
    )  # memory of gradients and moments that is used for the first time
    stored = BYTES.get(shape.stored_as, formulas.FLOAT)
    meter.write(work.saved * (formulas.FLOAT * work.trained if work.adapters else stored * shape.parameters))
    meter.take(work.states * 3 * formulas.FLOAT * work.trained / rates.write if work.states else 0)
    meter.hold(device=_memory(shape, work, round(length)))
    note = f"{work.steps:,} steps of {work.responses:,} responses"
    return meter.cost(
        known=known, note=f"{note}, at most {round(length):,} tokens each" if work.method == "grpo" else note
    )


def _memory(shape: ModelShape, work: TrainingWork, length: int) -> int:
    """Weights, gradients and moments, the graph of a micro-batch, and its logits with their gradient; or a generating batch."""
    fixed = formulas.FLOAT * (shape.parameters + 3 * work.trained)
    tokens = work.micro * length
    layers = 1 if work.again else shape.n_layers
    graph = formulas.graph_bytes(shape, "float32", tokens, length, layers)
    logits = 3 * formulas.FLOAT * tokens * shape.n_ids
    asked = formulas.generation_bytes(shape, "float32", work.responses, round(work.prompt), round(work.response))
    return fixed + max(graph + logits, asked if work.method == "grpo" else 0)
