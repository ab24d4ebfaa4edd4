"""The cost of every stage of a run, from its settings, the shapes of its models, its counts and the rates of a device."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mechprobe.cache.store.dtypes import row_bytes
from mechprobe.models.precision import AUTO
from mechprobe.planning import formulas
from mechprobe.planning.cost import Meter, StageCost
from mechprobe.planning.rates import Rates
from mechprobe.planning.shapes import BYTES, ModelShape
from mechprobe.planning.work import Workload
from mechprobe.run_config import RunConfig
from mechprobe.selection.config import TOGETHER
from mechprobe.selection.rankings.gradients import GRADIENT_TOKENS
from sae_training import CrosscoderConfig, TrainConfig

SPREAD = ("cache",)
"""Stages that several devices share; the others take one."""
_MARGIN = 1.02
_SPLICED = 3
_SPLICE_TOKENS = 4096


@dataclass(frozen=True)
class Scene:
    """Everything that the cost of a stage depends on.

    Attributes:
        config: The settings of the run.
        shapes: Model name to its sizes.
        work: The counts.
        rates: The rates of the device.
        devices: Number of devices.
        known: Whether the rates are known; without them there is no time.
    """

    config: RunConfig
    shapes: Mapping[str, ModelShape]
    work: Workload
    rates: Rates
    devices: int = 1
    known: bool = True

    @property
    def largest(self) -> ModelShape:
        """The model with the most parameters."""
        return max(self.shapes.values(), key=lambda shape: shape.parameters)

    @property
    def dtype(self) -> str:
        """Dtype in which the models run. ``auto`` is that of their files on a card, and float32 on a CPU."""
        if self.config.dtype != AUTO:
            return self.config.dtype
        stored = self.largest.stored_as
        return stored if self.rates.device == "cuda" and stored in BYTES else "float32"

    @property
    def weights(self) -> int:
        """Bytes of the largest model."""
        return self.largest.weight_bytes(self.dtype)

    @property
    def d_all(self) -> int:
        """Width of all models of the crosscoder together."""
        chosen = self.config.train_sae.models or tuple(self.shapes)
        return max(1, len(self.config.train_sae.sites)) * sum(self.shapes[name].d_model for name in chosen)

    @property
    def store_bytes(self) -> int:
        """Bytes of the activation store."""
        per_row = sum(row_bytes(self.config.cache.dtype, shape.d_model) for shape in self.shapes.values())
        return int(_MARGIN * self.work.rows * max(1, len(self.config.cache.sites)) * per_row)

    @property
    def stored_rows(self) -> int:
        """Rows that stay on the disk: all, or those that modes ``stream`` and ``ring`` keep."""
        kept = self.config.train_sae.kept
        return self.work.rows if kept is None else min(self.work.rows, 2 * kept.rows)

    @property
    def mapped_bytes(self) -> int:
        """Bytes of the store that stays, which later stages map into memory."""
        return round(self.store_bytes * self.stored_rows / max(1, self.work.rows))

    def training(self) -> tuple[CrosscoderConfig, TrainConfig]:
        """The settings of the dictionary, as `TrainSaeConfig.resolve` gives them."""
        settings, widths = self.config.train_sae, [shape.d_model for shape in self.shapes.values()]
        given = {"d_sae": settings.d_sae, "variant": settings.variant, "k": settings.k}
        shape = {
            "n_models": len(widths),
            "d_model": max(widths),
            **{key: value for key, value in given.items() if value is not None},
        }
        schedule = {"n_tokens": settings.n_tokens, "batch_size": settings.batch_size, "lr": settings.lr}
        schedule = {key: value for key, value in schedule.items() if value is not None} | settings.training
        paper = settings.preset == "paper"
        if not paper:
            trained = round(self.work.rows * (1 - self.config.cache.held_out_frac))
            shape, schedule = {"d_sae": 16 * max(widths), **shape}, {"n_tokens": 4 * trained, **schedule}
        made = (CrosscoderConfig.paper if paper else CrosscoderConfig)(**shape, **settings.crosscoder)
        return made, (TrainConfig.paper if paper else TrainConfig)(**schedule)


def _localize(scene: Scene) -> StageCost:
    work, config, shape = scene.work, scene.config, scene.largest
    meter = Meter("localize", scene.rates, scene.dtype)
    n_sites = shape.n_layers if config.localize.sites == "all" else len(config.localize.sites)
    batch, new = config.localize.batch_size, config.tasks.max_new_tokens
    meter.load(shape, 2)
    meter.generate(
        shape, work.located, work.task_tokens, new, batch, times=2 + 3 * n_sites
    )  # the donor runs up to the site: half
    rows = min(batch, work.located)
    held = formulas.generation_bytes(shape, scene.dtype, rows, work.longest_task, new)
    meter.hold(device=2 * scene.weights + 1.5 * held)
    return meter.cost(known=scene.known, note=f"{n_sites} sites, both directions")


def _cache(scene: Scene) -> StageCost:
    work, config = scene.work, scene.config
    meter = Meter("cache", scene.rates, scene.dtype)
    settings, longest = config.cache, scene.largest
    length, rows_made = work.rows / max(1, work.sequences), scene.stored_rows
    for _, name, _ in settings.responders():
        meter.load(scene.shapes[name])
        meter.generate(
            scene.shapes[name], work.prompts, work.prompt_tokens, settings.max_new_tokens, settings.generation_batch
        )
    for shape in scene.shapes.values():
        layers = min(work.layer, shape.n_layers)
        meter.load(shape, 1 if settings.reader == "bridge" else 2)
        meter.forward(shape, rows_made, length, rows_made / settings.batch_tokens, layers=layers)
    meter.write(scene.mapped_bytes)
    meter.read(scene.mapped_bytes)
    new = settings.max_new_tokens if settings.responses else 0
    rows = max(1, settings.batch_tokens // max(1, round(length)))
    batch = (
        formulas.activation_bytes(longest, scene.dtype, rows, round(length))
        + settings.batch_tokens * longest.d_model * BYTES[scene.dtype]
    )
    held = [batch]
    if new:
        held.append(
            formulas.generation_bytes(longest, scene.dtype, settings.generation_batch, work.longest_prompt, new)
        )
    shard = (
        min(settings.shard_rows, rows_made) * row_bytes(settings.dtype, longest.d_model) * max(1, len(settings.sites))
    )
    meter.hold(
        device=scene.weights + max(held),
        host=2 * shard + scene.rates.bridge - scene.rates.models + 1000 * work.sequences,
    )
    return meter.cost(devices=scene.devices, known=scene.known, note=f"{rows_made:,} rows")


def _train(scene: Scene) -> StageCost:
    config, work = scene.config, scene.work
    live = config.train_sae.mode != "cache"
    meter = Meter("train-sae", scene.rates, scene.dtype, models=live)
    shape, schedule = scene.training()
    dense = shape.variant == "l1"
    n_weights = formulas.crosscoder_weights(scene.d_all, shape.d_sae)
    if live:
        for each in scene.shapes.values():
            meter.load(each)
            length = work.rows / max(1, work.sequences)
            meter.forward(
                each, schedule.n_tokens, length, schedule.n_tokens / config.cache.batch_tokens, layers=work.layer
            )
    else:
        meter.read(scene.store_bytes * min(1.0, schedule.n_tokens / max(1, work.rows)))
    n_tokens = schedule.n_tokens
    if dense:
        meter.products(formulas.dense_step_flop(scene.d_all, shape.d_sae, n_tokens))
    else:
        meter.products(formulas.sparse_step_flop(scene.d_all, shape.d_sae, shape.k, n_tokens))
    meter.move(schedule.n_tokens / schedule.step_tokens * formulas.optimizer_bytes(n_weights))
    meter.write(4 * n_weights)
    device = formulas.training_bytes(scene.d_all, shape.d_sae, schedule.batch_size, dense=dense)
    if live:
        device += (len(scene.shapes) if config.train_sae.all_in_memory else 1) * scene.weights
        device += formulas.activation_bytes(scene.largest, scene.dtype, 1, config.cache.batch_tokens // 8)
    pool = min(config.train_sae.pool_rows, work.rows) * sum(
        row_bytes(config.cache.dtype, each.d_model) for each in scene.shapes.values()
    )
    meter.hold(device=device, host=2 * pool, mapped=scene.mapped_bytes)
    kind = "dense" if dense else f"k = {shape.k}"
    return meter.cost(known=scene.known, note=f"{shape.d_sae:,} features, {schedule.n_tokens:,} tokens, {kind}")


def _features(scene: Scene) -> StageCost:
    config, work = scene.config, scene.work
    meter = Meter("features", scene.rates, scene.dtype)
    shape, _ = scene.training()
    rows = min(scene.stored_rows, config.features.max_rows or work.rows)
    n_readouts = len(scene.shapes) + 1
    meter.read(scene.mapped_bytes)
    meter.products(
        n_readouts * formulas.encode_flop(scene.d_all, shape.d_sae, rows * (1 + 2 * config.cache.held_out_frac))
    )
    meter.move(12 * n_readouts * rows * shape.d_sae * formulas.FLOAT)  # selection and sums over latents (ours)
    length = work.rows / max(1, work.sequences)
    n_samples = min(config.features.ce_samples, work.sequences * config.cache.held_out_frac)
    for each in scene.shapes.values():
        meter.load(each)
        meter.forward(each, _SPLICED * n_samples * length, length, _SPLICED * n_samples / config.features.ce_batch)
        meter.head(each, _SPLICED * n_samples * length)
    largest, per_pass = scene.largest, min(config.features.ce_batch, _SPLICE_TOKENS // max(1, round(length)))
    passed = formulas.activation_bytes(largest, scene.dtype, max(1, per_pass), round(length))
    loss = formulas.loss_bytes(largest, scene.dtype, round(32 * length), scene.rates.device)
    coded = 4 * config.features.batch_rows * (2 * n_readouts * shape.d_sae + 4 * scene.d_all)
    dictionary = 2 * formulas.FLOAT * formulas.crosscoder_weights(scene.d_all, shape.d_sae)
    mapped = scene.store_bytes * rows / max(1, work.rows)
    meter.hold(device=dictionary + max(scene.weights + passed + loss, coded), mapped=mapped)
    return meter.cost(known=scene.known, note=f"{rows:,} rows, {n_readouts} read-outs")


def _evaluate(scene: Scene) -> StageCost:
    work, config, shape = scene.work, scene.config, scene.largest
    meter = Meter("evaluate", scene.rates, scene.dtype)
    for each in scene.shapes.values():
        meter.load(each)
        meter.generate(each, work.samples, work.task_tokens, config.tasks.max_new_tokens, config.evaluate.batch_size)
    rows = min(config.evaluate.batch_size, work.samples)
    meter.hold(
        device=scene.weights
        + formulas.generation_bytes(shape, scene.dtype, rows, work.longest_task, config.tasks.max_new_tokens)
    )
    return meter.cost(known=scene.known, note=f"{len(scene.shapes)} models, {work.samples:,} prompts")


def _select(scene: Scene) -> StageCost:
    work, config, shape = scene.work, scene.config, scene.largest
    meter = Meter("select", scene.rates, scene.dtype)
    length = work.task_tokens + work.response
    tokens, upper = work.gained * length, max(0, shape.n_layers - work.layer)
    for each in scene.shapes.values():
        meter.load(each)
        meter.forward(each, tokens, length, work.gained / TOGETHER, layers=work.layer)
    size, _ = scene.training()
    meter.products(len(scene.shapes) * formulas.encode_flop(scene.d_all, size.d_sae, tokens))
    if config.select.ranked_by in ("ig", "relie"):
        meter.forward(
            shape,
            config.select.steps * tokens,
            length,
            config.select.steps * tokens / GRADIENT_TOKENS,
            layers=upper,
            passes=2,
        )
        meter.head(shape, config.select.steps * work.gained * work.response, passes=3)
    held_tokens = min(GRADIENT_TOKENS, round(tokens))
    graph = formulas.graph_bytes(shape, scene.dtype, held_tokens, round(length), upper)
    loss = formulas.loss_bytes(shape, scene.dtype, held_tokens, scene.rates.device)
    dictionary = 2 * formulas.FLOAT * formulas.crosscoder_weights(scene.d_all, size.d_sae)
    meter.hold(device=scene.weights + graph + loss + dictionary)
    return meter.cost(known=scene.known, note=f"{work.gained:,} gained samples, {config.select.steps} steps")


def _intervene(scene: Scene) -> StageCost:
    work, config, shape = scene.work, scene.config, scene.largest
    meter = Meter("intervene", scene.rates, scene.dtype)
    settings = config.intervene
    new = settings.max_new_tokens or config.tasks.max_new_tokens
    n_conditions = work.conditions or n_conditions_of(config)
    samples = min(work.judging, work.tasks * settings.n_per_task) if settings.n_per_task else work.judging
    upper = max(1, shape.n_layers - work.layer)
    meter.load(shape, 2)
    meter.generate(shape, samples, work.task_tokens, new, settings.batch_size, times=2)
    length = work.task_tokens + min(new, work.response)
    meter.forward(
        shape, n_conditions * samples * length, length, n_conditions * samples / settings.batch_size, layers=upper
    )
    meter.flop += formulas.head_flop(shape, n_conditions * samples * min(new, work.response))
    size, _ = scene.training()
    meter.products(formulas.encode_flop(scene.d_all, size.d_sae, n_conditions / 8 * samples))
    rows = min(settings.batch_size, samples)
    held = formulas.generation_bytes(shape, scene.dtype, rows, work.longest_task, new)
    n_models = len(settings.near or scene.shapes)
    dictionary = 2 * formulas.FLOAT * formulas.crosscoder_weights(scene.d_all, size.d_sae)
    meter.hold(device=n_models * scene.weights + 2 * held + dictionary)
    meter.seconds = scene.rates.start_s + (meter.seconds - scene.rates.start_s) / max(1, settings.workers)
    counted = "" if work.conditions else "about "
    workers = f", {settings.workers} processes of this size" if settings.workers > 1 else ""
    return meter.cost(known=scene.known, note=f"{counted}{n_conditions:,} conditions, {samples:,} prompts{workers}")


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


def _report(scene: Scene) -> StageCost:
    meter = Meter("report", scene.rates, scene.dtype, models=False)
    return meter.cost(known=scene.known, note="figures, pages and contexts of the features")


STAGES: dict[str, Callable[[Scene], StageCost]] = {
    "localize": _localize,
    "cache": _cache,
    "train-sae": _train,
    "features": _features,
    "evaluate": _evaluate,
    "select": _select,
    "intervene": _intervene,
    "report": _report,
}
"""The stages whose cost is modelled, in the order of a run."""


def stage_costs(scene: Scene) -> list[StageCost]:
    """The cost of every stage of the chain; ``localize`` is left out where the settings name the site."""
    left_out = ("localize",) if scene.config.cache.sites else ()
    return [cost(scene) for name, cost in STAGES.items() if name not in left_out]
