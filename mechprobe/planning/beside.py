"""The cost of the stages beside the chain. ``plan`` is what their ``--dry-run`` counts; where it is empty, the settings are all there is."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from mechprobe.emergence.arms import all_arms, find_arms
from mechprobe.emergence.dictionaries import all_jobs
from mechprobe.planning import formulas
from mechprobe.planning.cost import Meter
from mechprobe.planning.intervening import intervene_steps, n_conditions_of
from mechprobe.planning.scene import Scene
from mechprobe.planning.shapes import BYTES, ModelShape
from mechprobe.planning.stage_cost import StageCost
from mechprobe.planning.stages import STAGES, encode, splice, spliced_memory, train_steps, training_memory
from mechprobe.selection.rankings.gradients import GRADIENT_TOKENS
from mechprobe.sweep.stage import chosen_benchmarks

Plan = Mapping[str, Any]
_METRICS, _GROUPS = 24, 12
"""Numbers of a row of `drift`, and groups of tokens that have rows (ours)."""
_DISTANCE_PASSES = 40
"""Passes over both distributions in float64 that the five distances, ranks and largest changes take (ours)."""
_STANDIN_TOKENS = 64
"""Longest response to a benchmark that sets none."""
_DRIFT_CHUNKS = 5
"""Chunks of logits or log-probabilities in float32 that `drift` holds at a time."""
_READ_OUTCOME = 0.2
"""Time to read an outcome, as a share of that to judge a response (ours)."""


def _drift(scene: Scene, plan: Plan) -> StageCost:
    config, length = scene.config.drift, scene.length
    shapes = scene.with_checkpoints(config.checkpoints)
    tuned = {name: shape for name, shape in shapes.items() if name != config.base}
    tokens = plan.get("tokens") or {name: {"responses": scene.stored_rows} for name in tuned}
    meter = scene.meter("drift", "models", opened=len(shapes))
    base = shapes.get(config.base, scene.largest)
    everything = scene.work.rows
    sequences = scene.work.sequences / max(1, len(scene.config.cache.responses))
    _read(meter, base, everything, length)
    for name, counts in tokens.items():
        shape = shapes.get(name, scene.largest)
        sources = max(1, sum(source != "prompt" for source in counts))
        predicted = sum(counts.values())
        read = min(everything, predicted + (sources - 1) * counts.get("prompt", 0))
        _read(meter, shape, read, length)
        meter.work("prompt", read / length)
        meter.flop += 2 * formulas.head_flop(shape, predicted)
        meter.shared += 2 * formulas.head_flop(shape, predicted) / scene.rates.head_rate(scene.dtype)
        meter.move(8 * _DISTANCE_PASSES * predicted * shape.n_ids)
        columns = sources * _GROUPS * _METRICS
        meter.work("product", config.draws * sequences * columns)
    n_layers = base.n_layers
    shifts = config.positions**2 * (3 * base.d_model + 5 * config.draws)  # CKA multiplies the draws with five matrices
    meter.double_products(len(tuned) * n_layers * shifts)
    meter.work("eigen", len(shapes) * n_layers * min(config.positions, base.d_model) ** 3)
    rows = max(1, config.batch_tokens // max(1, round(length)))
    chunk = min(1 << 24, rows * round(length) * base.n_ids)
    held = 2 * scene.weights + min(everything * formulas.FLOAT * base.d_model, 1 << 30)
    held += _DRIFT_CHUNKS * formulas.FLOAT * chunk + formulas.activation_bytes(base, scene.dtype, rows, round(length))
    sums = 8 * sequences * (len(tuned) * _GROUPS * _METRICS + config.draws)
    meter.hold(device=held, host=scene.stream_bytes + sums)
    return meter.cost(devices=scene.devices, known=scene.known, note=f"{len(tuned)} models against {config.base}")


def _read(meter: Meter, shape: ModelShape, tokens: int | float, length: int | float, batch_tokens: int = 4096) -> None:
    """Load a model and run it on sequences."""
    meter.load(shape)
    meter.work("loaded", 1)
    meter.forward(shape, tokens, length, tokens / batch_tokens)


def _logprobs(scene: Scene, plan: Plan) -> StageCost:
    config, work = scene.config.logprobs, scene.work
    shapes = scene.with_checkpoints(config.checkpoints)
    response = plan.get("tokens") or min(work.samples, config.max_prompts or work.samples) * 3 * work.response
    traces = plan.get("traces") or max(1, round(response / max(1.0, work.response)))
    meter = scene.meter("logprobs", "models", "figures", opened=len(shapes))
    meter.work("record", _READ_OUTCOME * len(scene.shapes) * work.samples)
    meter.work("prompt", 2 * traces)
    tokens = response + traces * work.task_tokens
    for shape in shapes.values():
        _read(meter, shape, tokens, tokens / traces, config.batch_tokens)
        meter.head(shape, response)
    # Means of every class and source in every model under draws of the prompts, and of the learning curves.
    groups = len(config.class_names) + 4
    meter.work("product", config.draws * traces * groups * 6 * len(shapes))
    meter.work("drawn", config.draws * traces * groups)
    meter.work("figure", 1)
    meter.work("chart", 5)
    meter.write(len(shapes) * response * 12)
    batch = formulas.activation_bytes(
        scene.largest, scene.dtype, max(1, round(config.batch_tokens * traces / tokens)), round(tokens / traces)
    )
    chunk = min(1 << 24, response * scene.largest.n_ids)
    meter.hold(device=scene.weights + batch + chunk * (formulas.FLOAT + 3 * 8), host=len(shapes) * response * 40)
    return meter.cost(
        devices=scene.devices,
        known=scene.known,
        note=f"{len(shapes)} models, {traces:,} traces, {round(response):,} response tokens",
    )


def _sweep(scene: Scene, plan: Plan) -> StageCost:
    config = scene.config.sweep
    shapes = scene.with_checkpoints(config.checkpoints)
    cells: list[dict[str, Any]] = plan.get("benchmarks") or [
        {
            "n_items": each.n_items or (each.skill.n if each.skill else 64),
            "n_draws": each.sampling.n if each.sampling else 1,
        }
        for each in chosen_benchmarks(config).values()
    ]
    meter = scene.meter("sweep", "models", opened=len(shapes))
    longest = 0.0
    for shape in shapes.values():
        meter.load(shape)
        meter.work("loaded", 1)
        for cell in cells:
            n = cell["n_items"] * cell["n_draws"]
            new = min(cell.get("decoding", {}).get("max_new_tokens") or _STANDIN_TOKENS, scene.work.longest_response)
            prompt = scene.work.padded_task(n, config.batch_size)
            meter.generate(shape, n, prompt, new, config.batch_size)
            held = formulas.generation_bytes(
                shape, scene.dtype, min(n, config.batch_size), scene.work.longest_task, new
            )
            longest = max(longest, held)
            meter.work("drawn", 2000 * cell["n_items"])
    meter.hold(device=scene.weights + longest)
    n_items = sum(cell["n_items"] * cell["n_draws"] for cell in cells)
    note = f"{len(shapes) * len(cells)} cells, {len(shapes) * n_items:,} responses; judges and reward models are not counted"
    return meter.cost(devices=scene.devices, known=scene.known, note=note)


def _probe(scene: Scene, plan: Plan) -> StageCost:
    config, work = scene.config.probe, scene.work
    models = plan.get("models") or list(scene.shapes)
    shapes = [scene.shapes.get(name, scene.largest) for name in models]
    meter = scene.meter("probe", "models", "classifiers", opened=len(shapes))
    meter.work("record", len(shapes) * work.samples)
    meter.work("drawn", 3 * config.draws * work.samples)
    meter.work("product", 3 * config.draws * work.samples * len(shapes))
    items = min(config.linear.items, work.samples)
    sites = len(config.linear.sites) or scene.largest.n_layers
    tokens, batch_tokens = items * work.task_tokens, config.linear.batch_size * round(work.task_tokens)
    linear, held = plan.get("linear", True), 0
    for shape in shapes if items and linear else []:
        _read(meter, shape, tokens, work.task_tokens, batch_tokens)
        fits = 2 * 2 * config.linear.folds * sites * len(config.linear.positions)  # skill, domain, and shuffled labels
        meter.work("fitted", fits * items * (1 - 1 / config.linear.folds) * shape.d_model)
    for shape in scene.chosen.values() if items and plan.get("features", True) else ():  # up to the site
        weights = work.layer * shape.block_weights
        meter.work("weight", weights * BYTES.get(shape.stored_as, 4))
        meter.work("loaded", 1)
        held = max(held, weights * BYTES[scene.dtype])
        meter.forward(shape, tokens, work.task_tokens, tokens / batch_tokens, layers=work.layer)
        meter.products(formulas.encode_flop(scene.d_all, scene.d_sae, tokens))
        meter.select(tokens * scene.d_sae)
    held = scene.weights if linear else held
    meter.hold(device=held + 8 * config.draws * work.samples + scene.dictionary_bytes * 2)
    return meter.cost(known=scene.known, note=f"{len(shapes)} models, {items:,} items, {sites} sites")


_KINDS = 4 + 4 * 4
"""Simulated curves of all kinds, for each draw: four flat ones, and gains of four heights from four checkpoints on."""
_LABELLED = 200
"""Simulated curves that take as long as the label of one resampled curve, which is found alone (ours)."""


def _dynamics(scene: Scene, plan: Plan) -> StageCost:
    config = scene.config.dynamics
    names = list(scene.with_checkpoints(scene.config.sweep.checkpoints))
    arms = all_arms(names, scene.config.emergence.base, scene.config.emergence.final_steps)
    curves: list[int] = list((plan.get("curves") or {}).values())
    curves = curves or [len(arm.checkpoints) for arm in arms] * scene.n_tasks or [1]
    n_curves, n_scores = len(curves), sum(curves)
    meter = scene.meter("dynamics", "models", "figures", opened=0)
    meter.work("record", len(names) * scene.work.samples)
    meter.work("curve", n_scores * ((_KINDS + 2) * config.draws + _LABELLED * config.resamples))
    meter.work("drawn", n_scores * config.draws * scene.work.samples / scene.n_tasks)
    meter.work("figure", 1)
    meter.work("chart", 2 * n_curves)  # a curve, and the length of its responses
    note = f"{n_curves} curves of up to {max(curves)} checkpoints"
    cost = meter.cost(known=scene.known, note=note)
    return replace(cost, device_bytes=0) if scene.rates.device == "cuda" else cost  # it takes no card


def _weights(scene: Scene, plan: Plan) -> StageCost:
    meter = scene.meter("weights", "models", opened=len(scene.shapes))
    if not plan:
        note = "depends on the files of the weights: `mechprobe weights --dry-run` reads their headers"
        return meter.cost(known=False, note=note)
    stored = sum(plan["bytes"].values())
    meter.read(stored)
    meter.check(stored)
    meter.take(plan["seconds"])
    meter.hold(host=plan["memory"])
    return meter.cost(known=scene.known, note=f"{plan['exact']:,} matrices exact, {plan['estimated']:,} estimated")


def _baselines(scene: Scene, plan: Plan) -> StageCost:
    names = plan.get("train", list(scene.shapes))
    meter = scene.meter("baselines", "models", "sae_lens")
    shape, schedule = scene.dictionary
    meter.check(scene.mapped_bytes)
    for name in names:
        width = scene.shapes[name].d_model if name in scene.shapes else scene.largest.d_model
        meter.products(formulas.dense_step_flop(width, shape.d_sae, schedule.n_tokens))
        if scene.rates.device == "cpu":
            meter.work("sae_step", schedule.n_tokens * shape.d_sae)
        else:
            meter.select(2 * schedule.n_tokens * shape.d_sae)
        weights = formulas.crosscoder_weights(width, shape.d_sae)
        meter.move(schedule.n_tokens / schedule.batch_size * 2 * formulas.optimizer_bytes(weights))
        meter.write(formulas.FLOAT * weights)
    encode(scene, meter, scene.held_out_rows, 2 + len(scene.shapes))
    samples = min(scene.config.features.ce_samples, scene.work.sequences * scene.config.cache.held_out_frac)
    for _ in range(2):
        splice(scene, meter, samples)
    pool = min(scene.config.train_sae.pool_rows, scene.work.rows) * scene.row_bytes
    training = training_memory(scene, d_all=scene.largest.d_model) + 2 * pool // max(1, len(scene.shapes))
    spliced = scene.weights + spliced_memory(scene, scene.largest) + 2 * scene.dictionary_bytes
    coded = formulas.FLOAT * 4096 * (4 * scene.d_all + 6 * scene.d_sae)
    kept = training if scene.rates.device == "cpu" else 0  # the allocator keeps what training held
    meter.hold(
        device=2 * scene.dictionary_bytes + max(training - kept, spliced, coded), host=kept, mapped=scene.mapped_bytes
    )
    return meter.cost(known=scene.known, note=f"{len(names)} SAEs of {shape.d_sae:,} features")


def _emergence(scene: Scene, plan: Plan) -> StageCost:
    config = scene.config.emergence
    shapes = scene.with_checkpoints(config.checkpoints)
    arms = find_arms(list(shapes), config) if not plan else ()
    names = list(dict.fromkeys([config.base, *(m for arm in arms for m in arm.checkpoints)])) if arms else list(shapes)
    n_jobs = len(plan.get("dictionaries", ())) or len(all_jobs(arms, config))
    every = scene.config.train_sae.replace(models=())  # each dictionary has its own models
    settings = scene.config.replace(train_sae=every)
    whole = replace(scene, config=settings, shapes={name: shapes.get(name, scene.largest) for name in names})
    cache = STAGES["cache"](whole)
    meter = whole.meter("emergence", "models", "optimizer", "figures", "bridge")
    meter.take((cache.seconds or 0.0) - scene.rates.started("program", "models", "bridge"))
    meter.flop, meter.disk = cache.flop, cache.disk_bytes
    pairs = max(0, n_jobs - config.seeds)
    rows = min(scene.work.rows, config.max_rows or scene.work.rows)
    for d_all, times in ((whole.d_all, config.seeds), (2 * scene.largest.d_model, pairs)):
        for _ in range(times):
            meter.check(whole.mapped_bytes)
            train_steps(whole, meter, d_all=d_all)
            meter.products(2 * formulas.encode_flop(d_all, whole.d_sae, rows))
            meter.move(24 * rows * whole.d_sae * formulas.FLOAT)
    if config.relie:
        tokens = config.relie_samples * scene.length
        upper = max(1, scene.largest.n_layers - scene.work.layer)
        for shape in whole.shapes.values():
            meter.load(shape)
            meter.work("loaded", 1)
            meter.forward(shape, tokens, scene.length, tokens / GRADIENT_TOKENS)
            meter.forward(shape, config.relie_steps * tokens, scene.length, config.relie_steps, layers=upper, passes=2)
            meter.head(shape, config.relie_steps * tokens, passes=3)
            meter.double_products(tokens * shape.d_model * whole.d_sae)
    graph = formulas.graph_bytes(scene.largest, scene.dtype, GRADIENT_TOKENS, round(scene.length), 1)
    training = training_memory(whole)
    meter.hold(device=training, host=scene.stream_bytes, mapped=whole.mapped_bytes)
    meter.hold(
        device=2 * whole.dictionary_bytes + scene.weights + graph + spliced_memory(whole, scene.largest),
        host=scene.stream_bytes,
    )
    note = f"{len(names)} models, {n_jobs} dictionaries"
    return replace(meter.cost(known=scene.known, note=note), host_bytes=max(cache.host_bytes, meter.cost().host_bytes))


def dictionary_seeds(scene: Scene, n: int) -> StageCost:
    """What ``run --dictionary-seeds N`` adds: a training, features, selection and main edits for each further dictionary."""
    main = scene.config.intervene.replace(doses=(), sizes=(), compare=(), leave_one_out=False)
    lean = replace(scene, config=scene.config.replace(intervene=main), work=replace(scene.work, conditions=None))
    parts = [STAGES[name](lean) for name in ("train-sae", "features", "select", "intervene")]
    started = scene.rates.started("program", "models")
    seconds = sum((part.seconds or 0.0) - started for part in parts)
    return StageCost(
        stage="dictionary seeds",
        flop=(n - 1) * sum(part.flop for part in parts),
        device_bytes=max(part.device_bytes for part in parts),
        host_bytes=max(part.host_bytes for part in parts),
        disk_bytes=(n - 1) * sum(part.disk_bytes for part in parts),
        seconds=(n - 1) * max(0.0, seconds) if scene.known else None,
        note=f"{n - 1} further dictionaries",
    )


def harness(scene: Scene, plan: Plan) -> StageCost:
    """What ``intervene --task`` costs as far as it is known: the tasks of lm-evaluation-harness have their own requests."""
    meter = scene.meter("harness", "models")
    meter.load(scene.largest, 2)
    intervene_steps(scene, meter, 0, 0)
    meter.hold(device=len(scene.shapes) * scene.weights)
    n = plan.get("conditions") or n_conditions_of(scene.config)
    note = f"{n:,} conditions; time depends on the requests of each task, one pass of all of them for each condition"
    return meter.cost(known=False, note=note)


SIDE: dict[str, Callable[[Scene, Plan], StageCost]] = {
    "emergence": _emergence,
    "sweep": _sweep,
    "drift": _drift,
    "dynamics": _dynamics,
    "logprobs": _logprobs,
    "probe": _probe,
    "baselines": _baselines,
    "weights": _weights,
    "harness": harness,
}
"""The stages beside the chain."""
LISTED = tuple(name for name in SIDE if name != "harness")
"""Side stages that a plan lists where the settings have their section."""
