"""The cost of every stage of a run, from its settings, the shapes of its models, its counts and the rates of a device."""

from collections.abc import Callable
from math import expm1

from mechprobe.cache.harvest.forward_batches import N_COMPARED
from mechprobe.cache.store.dtypes import row_bytes
from mechprobe.planning import formulas
from mechprobe.planning.cost import Meter
from mechprobe.planning.intervening import intervene
from mechprobe.planning.scene import Scene
from mechprobe.planning.shapes import BYTES, ModelShape
from mechprobe.planning.stage_cost import StageCost
from mechprobe.selection.config import TOGETHER
from mechprobe.selection.rankings.gradients import GRADIENT_TOKENS

_SPLICED = 3
"""Forward passes of a spliced loss: clean, spliced, and with the mean."""
_SPLICE_TOKENS = 4096
_EVALUATED_ROWS = 4096
"""Rows of a batch when `train-sae` measures the held-out rows."""
_POOL_BATCH_TOKENS = 4096
"""Tokens of a batch when `select` pools activations."""


def _localize(scene: Scene) -> StageCost:
    work, config, shape = scene.work, scene.config, scene.largest
    meter = scene.meter("localize", "models")
    n_sites = shape.n_layers if config.localize.sites == "all" else len(config.localize.sites)
    batch, new = config.localize.batch_size, work.longest_response
    meter.load(shape, 2, beside=1)
    # Clean, then both directions at every site, with the donor's blocks up to the site: half of them.
    prompt, patched = work.padded_task(work.located, batch), 2 * n_sites
    meter.generate(shape, work.located, prompt, new, batch, times=2 + patched)
    tokens, calls = patched * work.located * (prompt + new), patched * scene.batches(work.located, batch) * (1 + new)
    meter.forward(shape, tokens, prompt + new / 2, calls, layers=shape.n_layers / 2)
    rows = min(batch, work.located)
    held = formulas.generation_bytes(shape, scene.dtype, rows, work.longest_task, new)
    meter.hold(device=2 * scene.weights + 1.5 * held)
    return meter.cost(devices=scene.devices, known=scene.known, note=f"{n_sites} sites, both directions")


def _cache(scene: Scene) -> StageCost:
    work, settings, longest = scene.work, scene.config.cache, scene.largest
    meter = scene.meter("cache", "models", *(("bridge",) if settings.reader != "plain" else ()))
    length, rows_made = scene.length, scene.stored_rows
    meter.work("prompt", work.prompts)
    meter.work("token", work.prompts * work.prompt_tokens)
    for _, name, temperature in settings.responders():
        each = scene.shapes[name]
        meter.load(each)
        meter.work("loaded", 1)
        new, batch = work.longest_stored, settings.generation_batch
        meter.generate(each, work.prompts, work.prompt_tokens, new, batch, sampled=temperature > 0)
    compared = (
        0 if settings.reader == "bridge" else min(settings.shard_rows, N_COMPARED * settings.batch_tokens, rows_made)
    )
    read = work.read_tokens(settings.shard_rows, settings.batch_tokens) / max(1, work.rows)
    tokens = read * (rows_made + 2 * compared)  # both readers run some batches first
    for shape in scene.shapes.values():
        meter.load(shape, 2 if compared else 1)
        meter.work("loaded", 2 if compared else 1)
        meter.forward(shape, tokens, length, tokens / settings.batch_tokens, layers=min(work.layer, shape.n_layers))
    meter.write(scene.mapped_bytes)
    meter.read(scene.mapped_bytes)
    new = work.longest_stored if settings.responses else 0
    rows = max(1, settings.batch_tokens // max(1, round(length)))
    held = [
        formulas.activation_bytes(longest, scene.dtype, rows, round(length))
        + settings.batch_tokens * longest.d_model * BYTES[scene.dtype]
    ]
    if new:
        prompts = min(settings.generation_batch, work.prompts)
        held.append(formulas.generation_bytes(longest, scene.dtype, prompts, work.longest_prompt, new))
    shard = (
        min(settings.shard_rows, rows_made) * row_bytes(settings.dtype, longest.d_model) * max(1, len(settings.sites))
    )
    meter.hold(device=scene.weights + max(held), host=2 * shard + scene.stream_bytes)
    return meter.cost(devices=scene.devices, known=scene.known, note=f"{rows_made:,} rows")


def train_steps(scene: Scene, meter: Meter, *, d_all: int | None = None, n_tokens: int | None = None) -> None:
    """The steps of a training, and the measurement of the held-out rows."""
    shape, schedule = scene.dictionary
    d_all, n_tokens = d_all or scene.d_all, n_tokens or schedule.n_tokens
    if shape.variant == "l1":
        meter.products(formulas.dense_step_flop(d_all, shape.d_sae, n_tokens), schedule.precision)
    else:
        meter.products(formulas.encode_flop(d_all, shape.d_sae, n_tokens), schedule.precision)
        meter.gather(
            formulas.sparse_step_flop(d_all, shape.d_sae, shape.k, n_tokens)
            - formulas.encode_flop(d_all, shape.d_sae, n_tokens)
        )
    meter.select(n_tokens * shape.d_sae)
    weights = formulas.crosscoder_weights(d_all, shape.d_sae)
    meter.move(n_tokens / schedule.step_tokens * formulas.optimizer_bytes(weights))
    meter.products(2 * formulas.encode_flop(d_all, shape.d_sae, scene.held_out_rows))
    meter.select(scene.held_out_rows * shape.d_sae)
    meter.write(formulas.FLOAT * weights)


def training_memory(scene: Scene, *, d_all: int | None = None, parts: int = 1) -> int:
    """Bytes on a device while a dictionary is trained, or measured on held-out rows; ``parts`` devices divide its latents."""
    shape, schedule = scene.dictionary
    d_all, part = d_all or scene.d_all, -(-shape.d_sae // parts)
    step = formulas.training_bytes(d_all, part, schedule.batch_size, dense=shape.variant == "l1")
    step += formulas.kept_bytes(d_all, part) if scene.rates.device == "cpu" else 0
    rows = min(_EVALUATED_ROWS, max(1, round(scene.held_out_rows)))
    return max(step, formulas.evaluation_bytes(d_all, part, rows))


def _train(scene: Scene) -> StageCost:
    config, work = scene.config, scene.work
    live = config.train_sae.mode != "cache"
    devices = 1 if live else scene.devices  # one process runs models during training
    models = ("models",) if live else ()
    meter = scene.meter("train-sae", "optimizer", *models, opened=len(scene.shapes) if live else 0)
    shape, schedule = scene.dictionary
    meter.check(scene.mapped_bytes)
    if live:
        for each in scene.shapes.values():
            meter.load(each)
            batches = schedule.n_tokens / config.cache.batch_tokens
            meter.forward(each, schedule.n_tokens, scene.length, batches, layers=work.layer)
    else:  # every process reads all batches: into the pool, in order, and as float32
        read = scene.store_bytes * min(1.0, schedule.n_tokens / max(1, work.rows))
        meter.take(read / scene.rates.read + 4 * schedule.n_tokens * scene.row_bytes / scene.rates.bandwidth)
    train_steps(scene, meter)
    parts = devices if divides_latents(scene) else 1
    if devices > 1:  # processes add up reconstructions, or gradients
        steps, sums = schedule.n_tokens / schedule.step_tokens, schedule.step_tokens * scene.d_all
        exchanged = sums if parts > 1 else formulas.crosscoder_weights(scene.d_all, shape.d_sae)
        meter.take(2 * steps * formulas.FLOAT * exchanged / scene.rates.copy)
    device = training_memory(scene, parts=parts)
    if live:
        device += (len(scene.shapes) if config.train_sae.all_in_memory else 1) * scene.weights
        device += formulas.activation_bytes(scene.largest, scene.dtype, 1, config.cache.batch_tokens // 8)
    pool = min(config.train_sae.pool_rows, work.rows) * scene.row_bytes
    meter.hold(device=device, host=2 * pool + scene.stream_bytes, mapped=scene.mapped_bytes)
    kind = "dense" if shape.variant == "l1" else f"k = {shape.k}"
    note = f"{shape.d_sae:,} features, {schedule.n_tokens:,} tokens, {kind}"
    if parts > 1:
        note += f"; {-(-shape.d_sae // parts):,} features on each device"
    return meter.cost(devices=devices, known=scene.known, note=note)


def divides_latents(scene: Scene) -> bool:
    """Whether several devices divide the latents of the dictionary, instead of the rows of a batch."""
    return getattr(scene.dictionary[1], "divide", "latents") == "latents"


def encode(scene: Scene, meter: Meter, rows: int | float, n_joint: int = 1, *, by_model: bool = False) -> None:
    """Features of rows under the joint read-out, ``by_model`` also under that of each model, and sums over them.

    Slots that get the same residual share a product (`FoldedEncoder`), so the read-out of one model needs a part of the weights.
    """
    settings, n_models = scene.config.features, len(scene.chosen)
    if settings.readout == "joint" or not by_model:
        blocks, n_readouts = n_joint * n_models, n_joint
    else:
        others = n_models - len(settings.near or scene.chosen) if settings.readout == "swap" else 0
        blocks, n_readouts = n_joint * n_models + n_models * (1 + others), n_joint + n_models
    meter.products(blocks / n_models * formulas.encode_flop(scene.d_all, scene.d_sae, rows))
    meter.select(n_readouts * rows * scene.d_sae)
    meter.move(12 * n_readouts * rows * scene.d_sae * formulas.FLOAT)  # sums over latents (ours)


def splice(scene: Scene, meter: Meter, n_samples: int | float) -> None:
    """Cross-entropy of held-out samples, clean and with reconstructions in every model."""
    config, length = scene.config, scene.length
    last = list(scene.shapes)[-1]
    for name, each in scene.shapes.items():  # all clean passes come before the first edited one; the last model stays
        times = 1 if name == last else 2
        meter.load(each, times)
        meter.work("loaded", times)
        batches = _SPLICED * n_samples / max(1, min(config.features.ce_batch, _SPLICE_TOKENS // max(1, round(length))))
        meter.forward(each, _SPLICED * n_samples * length, length, batches)
        meter.head(each, _SPLICED * n_samples * length)


def spliced_memory(scene: Scene, shape: ModelShape) -> int:
    """Bytes of a forward pass with its chunked loss, beside the weights."""
    length = max(1, round(scene.length))
    rows = max(1, min(scene.config.features.ce_batch, _SPLICE_TOKENS // length))
    passed = formulas.activation_bytes(shape, scene.dtype, rows, length)
    return passed + formulas.loss_bytes(shape, scene.dtype, rows * length, scene.rates.device)


def contexts(scene: Scene, meter: Meter, rows: int | float) -> None:
    """Contexts and promoted tokens of every live feature: one more pass for random rows, and one through the unembeddings."""
    meter.check(scene.mapped_bytes)
    settings = scene.config.features
    drawn_from = min(rows, settings.quantile_rows or rows)
    encode(scene, meter, drawn_from)
    for each in scene.shapes.values() if settings.n_promoted else ():
        meter.load(each)
        meter.work("loaded", 1)
        meter.unembed(each, scene.d_sae)
    per_feature = settings.n_examples + settings.n_quantiles * settings.n_per_quantile
    tokens = scene.d_sae * per_feature * min(settings.context_before + settings.context_after + 1, scene.length / 2)
    covered = drawn_from * -expm1(-tokens / max(1, drawn_from))  # contexts overlap (ours: as if they were anywhere)
    encode(scene, meter, covered, by_model=True)
    meter.work("token", tokens)


def _features(scene: Scene) -> StageCost:
    config, work = scene.config, scene.work
    meter = scene.meter("features", "models")
    rows = min(scene.stored_rows, config.features.max_rows or work.rows)
    n_readouts = len(scene.shapes) + 1
    meter.check(scene.mapped_bytes)
    meter.read(scene.mapped_bytes)
    encode(scene, meter, rows + 2 * scene.held_out_rows, by_model=True)
    splice(scene, meter, min(config.features.ce_samples, work.sequences * config.cache.held_out_frac))
    meter.work("drawn", config.features.bootstrap_draws * config.features.bootstrap_groups * scene.d_sae / 64)
    encode(scene, meter, min(rows, config.features.quantile_rows or rows))  # examples of the first features
    if config.features.n_promoted and config.features.n_shown:  # the unembedding of one model is looked at first
        meter.load(scene.largest)
        meter.work("loaded", 1)
    contexts(scene, meter, rows)
    coded = formulas.FLOAT * config.features.batch_rows * (2 * n_readouts * scene.d_sae + 4 * scene.d_all)
    mapped = scene.store_bytes * rows / max(1, work.rows)
    spliced = scene.weights + spliced_memory(scene, scene.largest)
    meter.hold(device=2 * scene.dictionary_bytes + max(spliced, coded), host=scene.stream_bytes, mapped=mapped)
    return meter.cost(devices=scene.devices, known=scene.known, note=f"{rows:,} rows, {n_readouts} read-outs")


def _evaluate(scene: Scene) -> StageCost:
    work, config, shape = scene.work, scene.config, scene.largest
    meter = scene.meter("evaluate", "models")
    for each in scene.shapes.values():
        meter.load(each)
        meter.work("loaded", 1)
        new, batch = work.longest_of_task, config.evaluate.batch_size
        prompt, sampled = work.padded_task(work.samples, batch), config.tasks.sampling.temperature > 0
        meter.generate(each, work.samples, prompt, new, batch, sampled=sampled)
    rows = min(config.evaluate.batch_size, work.samples)
    held = formulas.generation_bytes(shape, scene.dtype, rows, work.longest_task, work.longest_response)
    meter.hold(device=scene.weights + held)
    note = f"{len(scene.shapes)} models, {work.samples:,} prompts"
    return meter.cost(devices=scene.devices, known=scene.known, note=note)


def _select(scene: Scene) -> StageCost:
    work, config, shape = scene.work, scene.config, scene.largest
    meter = scene.meter("select", "models")
    length = work.task_tokens + work.response
    tokens, upper = work.gained * length, max(0, shape.n_layers - work.layer)
    meter.work("record", work.samples * len(scene.shapes))  # outcomes are read
    meter.work("prompt", 2 * work.gained)
    # Every task loads every model for the pooled scores, and base and tuned again for gradients.
    for each in scene.shapes.values():
        meter.load(each, scene.n_tasks)
        meter.work("loaded", scene.n_tasks)
        meter.forward(each, tokens, length, max(scene.n_tasks, work.gained / TOGETHER), layers=work.layer)
    encode(scene, meter, tokens, len(scene.shapes))
    meter.move(scene.n_tasks * 8 * 16 * scene.d_sae)
    by_gradients = [kind for kind in ("ig", "relie") if kind == config.select.ranked_by or kind in config.select.also]
    for _ in by_gradients:
        _gradients(scene, meter, tokens, length, upper)
    meter.move(config.select.n_bootstrap * scene.n_tasks * scene.d_sae * 12 * 8)
    held_tokens = min(GRADIENT_TOKENS, round(tokens))
    graph = formulas.graph_bytes(shape, scene.dtype, held_tokens, round(length), upper)
    loss = formulas.loss_bytes(shape, scene.dtype, held_tokens, scene.rates.device)
    pooled = formulas.FLOAT * 8 * min(_POOL_BATCH_TOKENS, round(tokens)) * scene.d_sae
    sums = 8 * 3 * round(length) * scene.d_sae
    by_sample = formulas.FLOAT * work.gained * scene.d_sae * (2 + len(by_gradients) * 4)
    meter.hold(device=scene.dictionary_bytes * 3 + max(pooled, scene.weights + max(graph + loss, sums)) + by_sample)
    note = f"{work.gained:,} gained samples, {config.select.steps} steps"
    return meter.cost(devices=scene.devices, known=scene.known, note=note)


def _gradients(scene: Scene, meter: Meter, tokens: int | float, length: int | float, upper: int) -> None:
    """A ranking by gradients: clean passes of base and tuned, the path of the tuned model, and sums over positions in float64."""
    work, steps, shape = scene.work, scene.config.select.steps, scene.largest
    meter.load(shape, 3 * scene.n_tasks)
    meter.work("loaded", 3 * scene.n_tasks)
    meter.forward(shape, 2 * tokens, length, 2 * scene.n_tasks, layers=work.layer)
    encode(scene, meter, tokens, 2)
    meter.forward(
        shape, steps * tokens, length, steps * max(scene.n_tasks, tokens / GRADIENT_TOKENS), layers=upper, passes=2
    )
    meter.head(shape, steps * work.gained * work.response, passes=3)
    meter.double_products(2 * tokens * shape.d_model * scene.d_sae)
    meter.move(4 * 8 * tokens * scene.d_sae)


STAGES: dict[str, Callable[[Scene], StageCost]] = {
    "localize": _localize,
    "cache": _cache,
    "train-sae": _train,
    "features": _features,
    "evaluate": _evaluate,
    "select": _select,
    "intervene": intervene,
}
"""The stages of the chain that use models or the store, in the order of a run."""
