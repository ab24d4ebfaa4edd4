"""The cost of ``intervene``, whose conditions are drafted: most tokens are checked, and only some decoded."""

from dataclasses import replace

from mechprobe.formatting import duration
from mechprobe.planning import formulas
from mechprobe.planning.cost import Meter
from mechprobe.planning.scene import Scene
from mechprobe.planning.shapes import BYTES
from mechprobe.planning.stage_cost import StageCost
from mechprobe.run_config import RunConfig

_KNOWN = 4
"""Responses of a condition for one that is judged: the others are known from another condition (ours)."""
_DECODED = 3 / 8
"""Share of the tokens under an edit that no draft foretells, so that they are decoded one after another (ours; that of the lab).
Where it is 1, every response is checked a second time, against what was decoded for another edit."""
_EDIT_PASSES = 8
"""Passes of an edit over the residuals of all models at a token (ours)."""
_COLLATERAL_TOKENS = 2048
"""Tokens of a pass over texts under an edit."""
_RECORD_BYTES = 100
"""Bytes of a judged response in memory, whose text is not kept (ours)."""


def intervene_steps(
    scene: Scene, meter: Meter, n_conditions: int, samples: int, *, decoded_share: float = _DECODED
) -> None:
    """Clean responses, and every condition: drafts are checked in the blocks above the site, other tokens decoded, and responses judged."""
    work, settings, shape = scene.work, scene.config.intervene, scene.largest
    new = min(settings.max_new_tokens or work.longest_response, work.longest_response)
    upper = shape.n_layers - work.layer
    prompt = work.padded_task(samples, settings.batch_size)
    meter.generate(shape, samples, prompt, new, settings.batch_size, times=len(scene.shapes))
    response = min(new, work.response)
    length = prompt + response
    n = n_conditions * samples
    checked = n * (1 + (decoded_share - _DECODED) / (1 - _DECODED))
    meter.forward(shape, checked * length, length, checked / settings.batch_size, layers=upper)
    decoded = decoded_share * n * response
    for layers in (shape.n_layers, work.layer):  # of the host, and of a model that the edit reads
        meter.forward(shape, decoded, length, 2 * decoded / settings.batch_size, layers=layers)
        meter.move(3 * decoded * layers / shape.n_layers * formulas.kv_bytes(shape, scene.dtype, 1, round(length)))
    meter.unembed(shape, checked * response)
    meter.move(formulas.FLOAT * n * response * _EDIT_PASSES * scene.d_all)
    meter.products(formulas.encode_flop(scene.d_all, scene.d_sae, n_conditions / 8 * samples))
    meter.work("record", n / _KNOWN)


def intervene(scene: Scene) -> StageCost:
    """Every condition on its samples, over workers, and collateral after them; the note has the time if every response is decoded."""
    cost, most = (_cost(scene, share) for share in (_DECODED, 1.0))
    if most.seconds is None:
        return cost
    return replace(cost, note=f"{cost.note}; up to {duration(most.seconds)} if edits change every response")


def _cost(scene: Scene, decoded_share: float) -> StageCost:
    work, config, shape = scene.work, scene.config, scene.largest
    meter = scene.meter("intervene", "models")
    settings = config.intervene
    new = min(settings.max_new_tokens or work.longest_response, work.longest_response)
    n_conditions = work.conditions or n_conditions_of(config)
    samples = min(work.judging, work.tasks * settings.n_per_task) if settings.n_per_task else work.judging
    started = meter.alone
    meter.load(shape, 2)
    meter.work("loaded", 2)
    intervene_steps(scene, meter, n_conditions, samples, decoded_share=decoded_share)
    rows = min(settings.batch_size, samples)
    held = formulas.generation_bytes(shape, scene.dtype, rows, work.longest_task, new)
    n_models = len(settings.near or scene.shapes)
    records = _RECORD_BYTES * n_conditions * samples
    # one whole model, and the blocks of the others below the site; on a CPU, the rows of their embeddings stay in the file
    beside = work.layer * shape.block_weights + (shape.d_model * shape.n_ids if scene.rates.device == "cuda" else 0)
    weights = scene.weights + (n_models - 1) * BYTES[scene.dtype] * beside
    meter.hold(device=weights + 2 * held + 2 * scene.dictionary_bytes, host=records)
    workers = max(1, settings.workers)
    each = scene.rates.slowed(workers) / workers
    meter.alone = started * (1 if workers == 1 else 2) + (meter.alone - started) * each
    meter.shared *= each
    _collateral(scene, meter)
    counted = "" if work.conditions else "about "
    more = f", {workers} processes of this size" if workers > 1 else ""
    note = f"{counted}{n_conditions:,} conditions, {samples:,} prompts{more}"
    return meter.cost(devices=scene.devices, known=scene.known, note=note)


def _collateral(scene: Scene, meter: Meter) -> None:
    """Passes over held-out texts under main edits, compared sets, ceilings and reconstructions, and their divergences from no edit."""
    settings, shape = scene.config.intervene, scene.largest
    texts = min(settings.collateral_texts, scene.work.sequences * scene.config.cache.held_out_frac)
    passes = len((*settings.edits_base, *settings.edits_tuned)) * (1 + len(settings.compare)) + 4
    length = min(settings.collateral_length, scene.length)
    tokens = passes * texts * length
    # the host, and a model that the edit reads
    meter.forward(shape, 2 * tokens, length, 2 * tokens / _COLLATERAL_TOKENS)
    meter.head(shape, tokens, passes=2)


def n_conditions_of(config: RunConfig) -> int:
    """Conditions of ``intervene`` by its settings: random sets, equal-norm controls and sizes of every edit, and about 40 single ones."""
    settings = config.intervene
    edits = [*settings.edits_base, *settings.edits_tuned]
    transplants = sum("transplant" in edit for edit in edits)
    shifted = settings.n_shuffled if settings.n_shifted is None else settings.n_shifted
    rescaled = settings.n_random if settings.n_rescaled is None else min(settings.n_rescaled, settings.n_random)
    each = settings.n_random + rescaled + settings.n_shuffled
    sizes = len(settings.sizes) * (1 + min(20, settings.n_random))
    return len(edits) * each + transplants * (shifted + sizes) + 40
