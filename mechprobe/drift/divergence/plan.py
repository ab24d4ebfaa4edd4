"""What a drift stage reads and whether it can: checks before any work, and the estimate of ``--dry-run``."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.cache.store.token_file import WHOLE_STREAM, read_tokens
from mechprobe.data.stream import TokenStream
from mechprobe.drift.divergence.config import DriftConfig
from mechprobe.drift.divergence.distances import hidden_divergences
from mechprobe.drift.divergence.lens import Texts, lens_texts
from mechprobe.drift.divergence.measure import Measurement
from mechprobe.drift.divergence.parts import WINDOW_BYTES, PartFiles, windows_of
from mechprobe.drift.divergence.texts import DriftTexts
from mechprobe.errors import ConfigError, StoreError
from mechprobe.files import sha256_bytes
from mechprobe.formatting import byte_size, duration
from mechprobe.models.family import ModelFamily
from mechprobe.models.head import ModelHead
from mechprobe.models.next_token import CHUNK_VALUES

_PROBE_TOKENS = 256


def stream_of_store(store: "Path | str | ActivationStore | TokenStream", family: ModelFamily) -> TokenStream:
    """The whole token stream of a store, also of one that keeps a subset of the rows.

    Raises:
        ArtifactError: The folder holds no finished store.
        StoreError: A model or the tokenizer is not the one that the store was made with.
    """
    if isinstance(store, TokenStream):
        if store.tokenizer_fingerprint != family.tokenizer_fingerprint:
            raise StoreError(
                "The token stream was made with another tokenizer than that of the models; give its models."
            )
        return store
    opened = store if isinstance(store, ActivationStore) else ActivationStore.open(store)
    opened.check_family(family)
    return opened.stream if opened.subset is None else read_tokens(opened.folder, WHOLE_STREAM)


def compared_ids(family: ModelFamily) -> int:
    """Number of ids that are compared: those that the tokenizer has and that have an embedding row in every model.

    Rows behind them pad a matrix to a round size. No text can contain them, so distributions are restricted to the ids before.
    """
    return min(family.n_token_ids, max(family.tokenizer.get_vocab().values()) + 1)


@dataclass(frozen=True)
class DriftWork:
    """The checked arguments of a drift stage: models of the family that are compared, their texts, and unrelated texts."""

    family: ModelFamily
    texts: DriftTexts
    config: DriftConfig
    n_ids: int
    lens: Texts
    lens_source: str

    @classmethod
    def of(
        cls, family: ModelFamily, store: "Path | str | ActivationStore | TokenStream", config: DriftConfig
    ) -> "DriftWork":
        """Check the arguments; weights are loaded only where the architecture has to be measured.

        Raises:
            ConfigError: Base is not among the models, or is the only one.
            ArtifactError, StoreError: The store is unfinished or belongs to other models, or no sequence can be read.
            InputError: The file of the lens cannot be used.
        """
        names = family.names
        if config.base not in names:
            raise ConfigError(
                f"drift.base is '{config.base}', but the models are {', '.join(names)}; name one of them."
            )
        tuned = sorted(name for name in names if name != config.base)  # one order of the rows, as in run.json
        if not tuned:
            raise ConfigError(
                f"{config.base} is the only model, so there is none to compare it with; give another with --models."
            )
        stream = stream_of_store(store, family)
        texts = DriftTexts.of(stream, config.base, tuned, config)
        if not texts.chosen:
            raise StoreError(
                "The token stream has no sequence of two or more tokens that base and a tuned model read; cache prompts."
            )
        for model in family:
            model.require_residual()
        n_ids = compared_ids(family)
        known = max(max(stream.sequences[index].ids) for index in texts.chosen)
        if known >= n_ids:
            raise StoreError(f"The token stream holds id {known}, which some model has no embedding for; cache again.")
        lens, source = lens_texts(family, stream, config, n_ids) if config.lens_texts else ((), "")
        return cls(family, texts, config, n_ids, lens, source)

    @property
    def identity(self) -> Mapping[str, Any]:
        """What the result depends on beside the weights."""
        return {
            **self.config.model_dump(mode="json", exclude={"text", "lens_file", "checkpoints"}),
            "models": list(self.texts.models),
            "stream": self.texts.stream.hash,
            "n_ids": self.n_ids,
            "lens": sha256_bytes(repr([list(ids) for ids in self.lens]).encode()),
            **self.family.identity,
        }

    def measurement(self, folder: Path) -> Measurement:
        """The measurement in a stage folder."""
        base = self.family[self.config.base]
        hidden_bytes = base.d_model * (4 if base.dtype == "float32" else 2)
        windows = windows_of(self.texts, self.config.batch_tokens, hidden_bytes)
        return Measurement(self.family, self.texts, self.config, PartFiles(folder), windows, self.n_ids, self.lens)

    def counts(self) -> dict[str, dict[str, int]]:
        """Model → source and temperature → number of predicted tokens."""
        found: dict[str, dict[str, int]] = {name: {} for name in self.texts.models}
        for index in self.texts.chosen:
            is_response = self.texts.stream.sequences[index].is_response[1:]
            for name in self.texts.readers(index):
                counted = self.texts.counted(name, index)
                for label, n in (
                    (self.texts.label(index), is_response.sum()),
                    ("prompt", (counted & ~is_response).sum()),
                ):
                    if n:
                        found[name][label] = found[name].get(label, 0) + int(n)
        return found


def plan_lines(work: DriftWork, folder: Path) -> tuple[list[str], dict[str, Any]]:
    """Counts, memory and time of a drift stage as lines and JSON values; loads base for a short probe."""
    measured = work.measurement(folder)
    rate, weights = _probe(work)
    seconds = measured.n_tokens * rate[0] + sum(sum(row.values()) for row in work.counts().values()) * rate[1]
    hidden = min(
        WINDOW_BYTES,
        sum(len(work.texts.stream.sequences[i].ids) for i in work.texts.chosen)
        * 4
        * work.family[work.config.base].d_model,
    )
    memory = 2 * weights + hidden + 5 * 4 * min(CHUNK_VALUES, _PROBE_TOKENS * work.n_ids)
    counts = work.counts()
    lines = [
        f"{len(work.texts.chosen):,} sequences over {work.n_ids:,} ids; {work.config.base} runs once, and {len(counts)} models against it",
        *(
            f"{name}: " + ", ".join(f"{source} {n:,}" for source, n in row.items()) + " predicted tokens"
            for name, row in counts.items()
        ),
        f"two models in memory at a time, about {byte_size(memory)}; {len(measured.windows)} windows",
        f"about {duration(seconds)} (estimated from a probe of {work.config.base}, without loading the models)",
        *work.texts.missing(),
    ]
    return lines, {"tokens": counts, "seconds": round(seconds, 1), "bytes": memory, "windows": len(measured.windows)}


def _probe(work: DriftWork) -> tuple[tuple[float, float], int]:
    """Seconds per token of a forward pass, and per comparison of two distributions; and the bytes of base's weights."""
    base = work.family[work.config.base]
    head = ModelHead(base)
    ids = [token for index in work.texts.chosen[:64] for token in work.texts.stream.sequences[index].ids]
    row = torch.tensor([ids[: min(_PROBE_TOKENS, base.max_context)]])
    taken = []
    for _ in range(2):  # the first pass also selects kernels
        began = time.monotonic()
        hidden, _ = head.hidden(row, torch.ones_like(row))
        flat = hidden[0]
        _ = flat.sum().item()
        middle = time.monotonic()
        hidden_divergences(head, head, flat, flat, row[0], n_ids=work.n_ids, top=work.config.top)
        taken = [middle - began, time.monotonic() - middle]
    n_bytes = sum(parameter.numel() * parameter.element_size() for parameter in base.hf.parameters())
    base.release()
    return (taken[0] / row.shape[1], taken[1] / row.shape[1]), n_bytes
