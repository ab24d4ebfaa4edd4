"""``contexts.parquet`` and ``promoted.parquet``: what every live feature reads and promotes, without torch.

Both files have one row group for the same features, so that a reader needs memory for one group.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from mechprobe.environment import require
from mechprobe.errors import ArtifactError

if TYPE_CHECKING:
    import pyarrow as pa

CONTEXTS_FILE = "contexts.parquet"
PROMOTED_FILE = "promoted.parquet"
GROUP_FEATURES = 64
"""Features per row group."""
TOP = -1
"""``part`` of the contexts of highest activation; random contexts have the number of their quantile, lowest first."""
_INTEGERS = {"feature": "int32", "part": "int16", "sample": "int64", "row": "int64", "peak": "int32"}
_RANGE = ("low", "high", "smallest", "largest")


@dataclass(frozen=True)
class ContextGroup:
    """The contexts of some features, sorted by feature; within a feature, the top ones first, then random ones by quantile.

    Attributes:
        feature: Feature of each context.
        part: `TOP`, or the quantile that a random context was drawn from.
        low, high: Range of the quantile, as shares of the active rows; NaN for top contexts.
        smallest, largest: Its range of activations; NaN for top contexts.
        sample, row, peak: Sample, row of the store, and index of that row among the tokens.
        offset: First token of each context in the arrays below, and their length.
        strings: Different token texts.
        token: Index into ``strings`` of every token.
        is_response: Whether a token is part of a response.
        acts: Activations by read-out: ``joint``, and the models.
    """

    feature: Int[ndarray, " context"]
    part: Int[ndarray, " context"]
    low: Float[ndarray, " context"]
    high: Float[ndarray, " context"]
    smallest: Float[ndarray, " context"]
    largest: Float[ndarray, " context"]
    sample: Int[ndarray, " context"]
    row: Int[ndarray, " context"]
    peak: Int[ndarray, " context"]
    offset: Int[ndarray, " context_and_end"]
    strings: Sequence[str]
    token: Int[ndarray, " token"]
    is_response: Bool[ndarray, " token"]
    acts: dict[str, Float[ndarray, " token"]]

    def __len__(self) -> int:
        return len(self.feature)


@dataclass(frozen=True)
class PromotedGroup:
    """Tokens that the decoders of some features promote and suppress, strongest first.

    ``models`` has, by model and end (``promoted`` or ``suppressed``), the index into ``strings`` and the effect of each token.
    """

    feature: Int[ndarray, " feature"]
    strings: Sequence[str]
    models: dict[str, dict[str, tuple[Int[ndarray, "feature n"], Float[ndarray, "feature n"]]]]


def write_contexts(path: Path, groups: Iterable[ContextGroup]) -> int:
    """Write the groups to a Parquet file and return the number of contexts; at least one group is needed."""
    return _write(path, (_context_table(group) for group in groups))


def write_promoted(path: Path, groups: Iterable[PromotedGroup]) -> int:
    """Write the groups to a Parquet file and return the number of features; at least one group is needed."""
    return _write(path, (_promoted_table(group) for group in groups))


def read_contexts(path: Path) -> Iterator[ContextGroup]:
    """Read `write_contexts`, one row group after the other; `ArtifactError` if the file cannot be read."""
    with _reading(path, "tokens") as tables:
        for table in tables:
            token, strings = _texts(table["tokens"])
            lists = {name: table[name] for name in table.schema.names if name.startswith("act_")}
            yield ContextGroup(
                **{name: table[name].to_numpy(zero_copy_only=False) for name in (*_INTEGERS, *_RANGE)},
                offset=table["tokens"].offsets.to_numpy(),
                strings=strings,
                token=token,
                is_response=table["is_response"].values.to_numpy(zero_copy_only=False),
                acts={name.removeprefix("act_"): column.values.to_numpy() for name, column in lists.items()},
            )


def read_promoted(path: Path) -> Iterator[PromotedGroup]:
    """Read `write_promoted`, one row group after the other; `ArtifactError` if the file cannot be read."""
    columns = _promoted_columns(path)
    with _reading(path, *(f"{end}.{name}" for end, name in columns)) as tables:
        for table in tables:
            strings: dict[str, int] = {}
            models: dict[str, dict[str, Any]] = {}
            for end, name in columns:
                index, texts = _texts(table[f"{end}.{name}"])
                place = np.array([strings.setdefault(text, len(strings)) for text in texts], dtype=np.int64)
                value = table[f"{end}_value.{name}"].values.to_numpy()
                shape = (table.num_rows, -1) if len(index) else (table.num_rows, 0)
                models.setdefault(name, {})[end] = place[index].reshape(shape), value.reshape(shape)
            yield PromotedGroup(table["feature"].to_numpy(), tuple(strings), models)


def _context_table(group: ContextGroup) -> "pa.Table":
    import pyarrow as pa

    def of_tokens(values: Any) -> Any:
        return pa.ListArray.from_arrays(pa.array(group.offset, pa.int32()), values)

    columns: dict[str, Any] = {name: pa.array(getattr(group, name), kind) for name, kind in _INTEGERS.items()}
    columns |= {name: pa.array(getattr(group, name), pa.float32()) for name in _RANGE}
    columns["tokens"] = of_tokens(_encoded(group.token, group.strings))
    columns["is_response"] = of_tokens(pa.array(group.is_response))
    columns |= {f"act_{name}": of_tokens(pa.array(values, pa.float32())) for name, values in group.acts.items()}
    return pa.table(columns)


def _promoted_table(group: PromotedGroup) -> "pa.Table":
    import pyarrow as pa

    columns: dict[str, Any] = {"feature": pa.array(group.feature, pa.int32())}
    for name, ends in group.models.items():
        for end, (index, value) in ends.items():
            offset = pa.array(np.arange(len(index) + 1) * index.shape[1], pa.int32())
            columns[f"{end}.{name}"] = pa.ListArray.from_arrays(offset, _encoded(index.ravel(), group.strings))
            columns[f"{end}_value.{name}"] = pa.ListArray.from_arrays(offset, pa.array(value.ravel(), pa.float32()))
    return pa.table(columns)


def _encoded(index: Int[ndarray, " token"], strings: Sequence[str]) -> Any:
    """Texts as a dictionary array. A lone surrogate has no UTF-8 form and becomes a question mark."""
    import pyarrow as pa

    texts = pa.array([text.encode("utf-8", "replace").decode() for text in strings], pa.string())
    return pa.DictionaryArray.from_arrays(pa.array(index, pa.int32()), texts)


def _texts(column: Any) -> tuple[Int[ndarray, " token"], list[str]]:
    """The texts of a column of lists, as indices and the different texts."""
    values = column.values.dictionary_encode() if not hasattr(column.values, "dictionary") else column.values
    return values.indices.to_numpy().astype(np.int64), values.dictionary.to_pylist()


def _promoted_columns(path: Path) -> list[tuple[str, str]]:
    """``(end, model)`` of every list of tokens."""
    with _readable(path):
        names = require("pyarrow.parquet", "The promoted tokens").read_schema(path).names
    pairs = (name.partition(".") for name in names if "." in name)
    return [(end, model) for end, _, model in pairs if end in ("promoted", "suppressed")]


def _write(path: Path, tables: Iterator["pa.Table"]) -> int:
    parquet = require("pyarrow.parquet", "The contexts of the features")
    first, partial, n_rows = next(tables), path.with_name(path.name + ".partial"), 0
    with parquet.ParquetWriter(partial, first.schema, compression="zstd") as writer:
        for table in (first, *tables):
            writer.write_table(table, row_group_size=max(1, len(table)))
            n_rows += len(table)
    partial.replace(path)
    return n_rows


@contextmanager
def _reading(path: Path, *texts: str) -> Iterator[Iterator[Any]]:
    """Yield the row groups of a file as record batches."""
    parquet = require("pyarrow.parquet", "The explorer")
    with _readable(path), parquet.ParquetFile(path, read_dictionary=[f"{name}.list.element" for name in texts]) as file:
        groups = (
            file.read_row_group(number, use_threads=False).combine_chunks() for number in range(file.num_row_groups)
        )
        yield (table.to_batches()[0] for table in groups if len(table))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn the errors of a file that cannot be read into one sentence."""
    pa = require("pyarrow", "The explorer")
    try:
        yield
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); make it again with `mechprobe features`.") from None
