"""``mechprobe drift``: how far the next-token distributions and residual streams of every model are from those of base."""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.data.stream import TokenStream
from mechprobe.drift.divergence.columns import BUCKETS, COLUMNS
from mechprobe.drift.divergence.config import DriftConfig
from mechprobe.drift.divergence.measure import Measurement
from mechprobe.drift.divergence.metrics import METRICS
from mechprobe.drift.divergence.parts import LAYER
from mechprobe.drift.divergence.plan import DriftWork
from mechprobe.drift.divergence.representation import METRIC_RULE, shifts_of_layers
from mechprobe.drift.divergence.result import RESULT_FILE, DivergenceResult, DivergenceRow, LayerRow, LensRow, TokenRow
from mechprobe.drift.divergence.sums import KINDS, CellSums, TokenCounts, of_arrays
from mechprobe.drift.divergence.sums_frame import SEQUENCES_FILE, SUMS_FILE
from mechprobe.drift.divergence.table import divergence_rows
from mechprobe.drift.divergence.texts import BUCKET_RULE, CLASS_RULE, DriftTexts, labels_of
from mechprobe.features.examples.promoted import token_text
from mechprobe.files import read_json, write_bytes, write_json
from mechprobe.models.family import ModelFamily
from mechprobe.progress import activity
from mechprobe.ranks import sharing
from mechprobe.stage_folder import Stage

_OUTSIDE = 1e-3
"""Mean probability of ids that are not compared from which the result says so."""


def divergence(
    family: ModelFamily,
    store_or_stream: Path | str | ActivationStore | TokenStream,
    *,
    out: Path | str = "drift",
    config: DriftConfig | None = None,
    force: bool = False,
) -> DivergenceResult:
    """Compare the next-token distributions and residual streams of every model with those of base, on one token stream.

    Every number is exact over the vocabulary and is kept as a sum per sequence, token class and position bucket. Continuations of
    base, of each model itself, and of the prompts file are apart. Base runs once, and every other model once over what it reads.

    Args:
        family: Base and the models that are compared with it.
        store_or_stream: Store of `mechprobe.cache_activations`, of which only the tokens are read, or a token stream.
        out: Stage folder for ``divergence.json``, ``sums.safetensors``, ``sequences.json`` and ``manifest.json``.
        config: Settings; the defaults if None.
        force: Make a finished folder again.

    Returns:
        The result; a finished stage is read back, and an interrupted one is resumed.

    Raises:
        ConfigError: Base is not among the models, or is the only one.
        StoreError: The store was made with other models or another tokenizer.
        ArtifactError: The store is not finished, or ``out`` holds other work.
        ModelError: A logit is not finite, or an architecture is not supported.
    """
    out = Path(out)
    work = DriftWork.of(family, store_or_stream, config or DriftConfig())
    models = {name: family[name].fingerprint for name in (work.texts.base, *work.texts.models)}
    with Stage.open(out, name="drift", config=work.identity, models=models, force=force, one_folder=True) as stage:
        measured = work.measurement(out)
        if not stage.done:
            measured.run()
        if sharing().is_first:
            if not stage.done:
                _write(stage, work, measured)
            shutil.rmtree(measured.files.folder, ignore_errors=True)
    return DivergenceResult.load(out)


def _write(stage: Stage, work: DriftWork, measured: Measurement) -> None:
    """Join the parts, write tables and sums, and finish the stage."""
    from safetensors.numpy import save

    texts, config = work.texts, work.config
    sequences = {index: _described(texts, index) for index in texts.chosen}
    sums: dict[str, CellSums] = {}
    rows: list[DivergenceRow] = []
    tokens: list[TokenRow] = []
    for name in texts.models:
        with activity(f"intervals of {name}"):
            sums[name], counts = _joined(measured, name)
            found = divergence_rows(
                name, texts.base, sums[name].keys, sums[name].sums, sequences, draws=config.draws, seed=config.seed
            )
            rows += found
            tokens += list(_token_rows(name, counts, found, config.top, work.family.tokenizer))
    with activity("intervals of the layers"):
        layers, explained = _layer_rows(measured)
    lens = [read_json(measured.files.path("lens", name)) for name in texts.models] if work.lens else []
    result = DivergenceResult(
        folder=stage.folder,
        base=texts.base,
        models=texts.models,
        n_ids=work.n_ids,
        n_rows={model.name: model.n_rows for model in work.family},
        rows=tuple(rows),
        layers=tuple(layers),
        explained=explained,
        lens=tuple(LensRow(**row) for part in lens for row in part["rows"]),
        lens_source=work.lens_source,
        tokens=tuple(tokens),
        rules={**METRICS, **METRIC_RULE, "buckets": BUCKET_RULE, "token_classes": CLASS_RULE},
        notes=(*texts.missing(), *_notes(work, measured, sums), *(part["missing"] for part in lens if part["missing"])),
    )
    result.save(stage.folder / RESULT_FILE)
    arrays = {
        f"{name}/{kind}": np.ascontiguousarray(getattr(sums[name], kind)) for name in sums for kind in ("keys", "sums")
    }
    write_bytes(stage.folder / SUMS_FILE, save(arrays))
    write_json(
        stage.folder / SEQUENCES_FILE, {"base": texts.base, "models": list(texts.models), "sequences": sequences}
    )
    stage.finish(
        outputs=[RESULT_FILE, SUMS_FILE, SEQUENCES_FILE],
        counts={
            "sequences": len(sequences),
            "predictions": {name: int(own.sums[:, 0].sum()) for name, own in sums.items()},
        },
        results={
            "kl": {f"{row.model} {row.source}": row.value for row in rows if (row.metric, row.by) == ("kl", "all")}
        },
        seed=config.seed,
    )


def _described(texts: DriftTexts, index: int) -> dict[str, Any]:
    sequence, origin = texts.stream.sequences[index], texts.origins[index]
    skill, domain = labels_of(sequence)
    return {
        "id": sequence.id, "prompt_id": sequence.prompt_id, "task": sequence.task or "", "skill": skill, "domain": domain,
        "writer": origin.model, "temperature": origin.temperature,
    }  # fmt: skip


def _joined(measured: Measurement, name: str) -> tuple[CellSums, dict[str, TokenCounts]]:
    """Sums and token counts of one model over all windows."""
    windows = [number for number in range(len(measured.windows)) if name in measured.readers(number)]
    parts = [of_arrays(measured.files.read(number, name, without=LAYER)) for number in windows]
    sources = sorted({source for _, tokens in parts for source in tokens})
    joined = {s: TokenCounts.joined(tokens[s] for _, tokens in parts if s in tokens) for s in sources}
    return CellSums.joined([cells for cells, _ in parts]), joined


def _token_rows(
    name: str, counts: Mapping[str, TokenCounts], rows: list[DivergenceRow], top: int, tokenizer: Any
) -> Iterator[TokenRow]:
    """The tokens that change most often, by source and kind."""
    for label, own in counts.items():
        source, _, temperature = label.partition("@")
        heat = float(temperature) if temperature else None
        n = next(
            row.n for row in rows if (row.source, row.temperature, row.by, row.metric) == (source, heat, "all", "kl")
        )
        for kind in KINDS:
            total = own.counts[own.keys[:, 0] == KINDS.index(kind), 0].sum() if kind == "shifted" else n
            for place, (token, count, mean) in enumerate(own.leading(kind, top), start=1):
                yield TokenRow(
                    model=name, source=source, temperature=heat, kind=kind, place=place, token=token_text(tokenizer, token),
                    id=token, count=count, share=count / total, mean=mean,
                )  # fmt: skip


def _layer_rows(measured: Measurement) -> tuple[list[LayerRow], dict[str, tuple[float, ...]]]:
    """PCA shift and CKA of every model and layer, and the explained shares of base by layer."""
    texts, config, files = measured.texts, measured.config, measured.files
    windows = [n for n, window in enumerate(measured.windows) if any(b.readers == texts.models for b in window)]
    cluster = measured.sampled.clusters([measured.windows[number] for number in windows])
    if len(cluster) < 2:
        return [], {}
    n_layers, n_clusters = measured.family.n_layers, len(np.unique(cluster))
    rows: list[LayerRow] = []
    explained: dict[str, tuple[float, ...]] = {}
    for name in texts.models:
        base, tuned = (files.layers(windows, model, n_layers) for model in (texts.base, name))
        for layer, found in shifts_of_layers(base, tuned, cluster, draws=config.draws, seed=config.seed).items():
            if found.explained:
                explained[str(layer)] = found.explained
            rows += [
                LayerRow(model=name, layer=layer, metric=metric, n_sequences=n_clusters, **value._asdict())
                for metric, value in found.values.items()
            ]
    return rows, explained


def _notes(work: DriftWork, measured: Measurement, sums: Mapping[str, CellSums]) -> Iterator[str]:
    texts = work.texts
    heats = {origin.temperature for origin in texts.origins.values() if origin.model not in ("", texts.base)}
    other = sorted(heat for heat in heats if heat not in (None, 1.0))
    if other:
        yield (
            f"kl_mc and kl_k3 estimate KL only on continuations sampled at temperature 1; those at {', '.join(f'{h:g}' for h in other)} "
            "weigh other tokens (arXiv 2507.00432 reports kl_mc at temperature 0). kl is exact at the same positions."
        )
    if not measured.sampled.places:
        yield f'No sequence is read by every model, so PCA shift and CKA are missing; add "{texts.base}@1.0" to cache.responses.'
    elif len(measured.sampled.places) < 2:
        yield "All sampled positions stand in one sequence, so PCA shift and CKA have no intervals."
    place = {side: COLUMNS.index(side) for side in ("outside", "outside_base")}
    for name, own in sums.items():
        n = own.sums[:, 0].sum()
        for side, model in (("outside", name), ("outside_base", texts.base)):
            share = own.sums[:, place[side]].sum() / n if n else 0.0
            if share > _OUTSIDE:
                yield f"{model} gives {share:.2%} of its probability to ids from {work.n_ids} on, which no text has; they are left out."
    if len(BUCKETS) and not any(own.sums[own.keys[:, 2] > 0, 0].sum() for own in sums.values()):
        yield "No sequence has a response, so only prompts are compared."
