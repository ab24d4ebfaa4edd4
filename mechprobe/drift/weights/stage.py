"""``mechprobe weights``: what post-training added to the weights, read tensor by tensor from the files."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from mechprobe.drift.weights.checkpoints import refuse_non_finite
from mechprobe.drift.weights.compared import Comparison, compare
from mechprobe.drift.weights.config import WeightsConfig
from mechprobe.drift.weights.measure import Row, measure
from mechprobe.drift.weights.result import PAIRS_FILE, RESULT_FILE, TABLE_FILE, WeightsResult
from mechprobe.drift.weights.stored import View
from mechprobe.drift.weights.summary import model_update, update_pairs
from mechprobe.environment import require
from mechprobe.features.table.feature_table import require_table_packages
from mechprobe.files import read_json, write_bytes, write_json
from mechprobe.progress import activity, progress
from mechprobe.stage_folder import Stage

_FIRST = (
    "model", "first", "second", "tensor", "layer", "type", "rows", "columns", "n", "base_dtype", "dtype", "norm", "base_norm",
    "relative_norm", "max_abs", "unchanged", "below_bf16", "sign_flips", "kurtosis", "method", "k", "null_draws", "cosine",
)  # fmt: skip
"""First columns of the tables; the others follow by name."""
_PARTS = "parts"
"""Folder of the weights that are measured, one file each, until the stage is finished."""


def weight_statistics(
    models: Mapping[str, str | Path],
    base: str | None = None,
    *,
    out: Path | str = "weights",
    config: WeightsConfig | None = None,
    force: bool = False,
) -> WeightsResult:
    """Compare the weights of models with those of the base model they were trained from. No model is loaded.

    The files are read block by block. An interrupted stage continues after the last measured weight.

    Args:
        models: Name → local folder or hub name, base included. LoRA adapters are read as factors and not merged.
        base: Name of the model before post-training; None takes that of the settings.
        out: Stage folder for ``weights.json``, ``weights.parquet``, ``pairs.parquet`` and ``manifest.json``.
        config: Settings; the defaults if None.
        force: Make the result again.

    Returns:
        The result; a finished stage is read back.

    Raises:
        ConfigError: There is no such base, or no other model.
        ModelError: A model cannot be used, lacks a tensor of base, has one of another shape, or has weights that are not finite.
        ArtifactError: The folder holds other work.
        DependencyError: pandas or pyarrow is not installed.
    """
    require_table_packages()
    config = config or WeightsConfig()
    config = config if base is None else config.replace(base=base)
    compared, out = compare(models, config.base), Path(out)
    prints = {model.role: model.folder.fingerprint for model in (compared.base, *compared.tuned.values())}
    settings = config.model_dump(mode="json")
    with Stage.open(out, name="weights", config=settings, models=prints, force=force) as stage:
        if not stage.done:
            _make(stage, compared, config)
    return WeightsResult.load(out)


def _make(stage: Stage, compared: Comparison, config: WeightsConfig) -> None:
    """Measure every weight that has no part yet, write the result, and finish the stage."""
    parts = {name: stage.folder / _PARTS / f"{number:06d}.json" for number, name in enumerate(compared.names)}
    if not any(part.is_file() for part in parts.values()):
        known: set[View] = set()
        for model in (compared.base, *compared.tuned.values()):
            refuse_non_finite(model, known)
    total = sum(compared.view(name).n for name in compared.names)
    with progress(total, "weights", unit="parameters") as advance:
        for name, part in parts.items():
            count = advance.found
            if not part.is_file():
                with activity(name):
                    found = measure(name, compared, config)
                write_json(part, {"rows": found.rows, "pairs": found.pairs})
                count = advance
            count(compared.view(name).n, tensor=name)
    read = [read_json(part) for part in parts.values()]
    _write(
        stage, compared, config, *([_restored(row) for part in read for row in part[key]] for key in ("rows", "pairs"))
    )
    shutil.rmtree(stage.folder / _PARTS, ignore_errors=True)


def _restored(row: Row) -> Row:
    """A row of a part; null stands for NaN, except in the columns that may be empty."""
    return {
        key: float("nan") if value is None and key not in ("layer", "columns") else value for key, value in row.items()
    }


def _write(stage: Stage, compared: Comparison, config: WeightsConfig, rows: list[Row], pairs: list[Row]) -> None:
    estimated = [row for row in rows if row.get("method") == "estimated"]
    result = WeightsResult(
        folder=stage.folder,
        base=config.base,
        names=tuple(compared.tuned),
        n=sum(compared.view(name).n for name in compared.names),
        n_weights=len(compared.names),
        tied=compared.tied,
        left_out=compared.left_out,
        top_k=config.top_k,
        exact_up_to=config.exact_up_to,
        n_estimated=len({row["tensor"] for row in estimated}),
        error_values=max((row["error_values"] for row in estimated), default=0.0),
        error_nuclear=max((row["error_nuclear"] for row in estimated), default=0.0),
        models={
            role: model_update(model.kind, [row for row in rows if row["model"] == role])
            for role, model in compared.tuned.items()
        },
        pairs=update_pairs(pairs),
    )
    tables = {TABLE_FILE: _table(rows), PAIRS_FILE: _table(pairs)}
    for name, content in tables.items():
        write_bytes(stage.folder / name, content)
    result.save(stage.folder / RESULT_FILE)
    stage.finish(
        outputs=[RESULT_FILE, *tables],
        counts={"weights": result.n_weights, "parameters": result.n, "estimated": result.n_estimated},
        results={role: update.total.relative_norm for role, update in result.models.items()},
        seed=config.seed,
    )


def _table(rows: list[Row]) -> bytes:
    """Rows as a Parquet file; whole numbers that a row may lack stay whole numbers."""
    table = require("pandas", "The table of weights").DataFrame(rows)
    whole = {key: "Int64" for key in ("layer", "columns", "k", "pair_k", "null_draws") if key in table}
    first = [key for key in _FIRST if key in table]
    return table.astype(whole)[[*first, *(key for key in table if key not in first)]].to_parquet(index=False)
