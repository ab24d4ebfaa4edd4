"""The folder ``contexts``: what every live feature reads and promotes, for the explorer and for other viewers."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mechprobe.cache.store.activation_store import ActivationStore
from mechprobe.dictionary.readout import model_scale
from mechprobe.features.config import FeaturesConfig
from mechprobe.features.contexts.collect import all_contexts
from mechprobe.features.contexts.files import (
    CONTEXTS_FILE,
    GROUP_FEATURES,
    PROMOTED_FILE,
    PromotedGroup,
    write_contexts,
    write_promoted,
)
from mechprobe.features.examples.promoted import Ends, promoted_ids, token_text, unloaded_afterwards
from mechprobe.features.stage import open_inputs
from mechprobe.features.table.feature_table import FeatureTable
from mechprobe.models.family import ModelFamily
from mechprobe.progress import activity
from mechprobe.stage_folder import Stage
from sae_training import Crosscoder


def collect_contexts(
    *,
    crosscoder: Path | str,
    cache: Path | str,
    features: Path | str,
    family: ModelFamily,
    out: Path | str,
    config: FeaturesConfig | None = None,
    device: str = "cpu",
) -> Path:
    """Write ``contexts.parquet`` and ``promoted.parquet`` with every live feature to ``out``, again if the inputs changed.

    The arguments are those of `mechprobe.explain_features`. Without promoted tokens (``config.n_promoted`` is 0), the second
    file is left out; without a live feature, both are.

    Raises:
        StoreError: The models are not those of the store.
        ModelError: A model's unembedding cannot be used.
    """
    dictionary, store = open_inputs(crosscoder, cache, device)
    config = (config or FeaturesConfig()).with_site(crosscoder, store)
    family = family.subset(*dictionary.model_names)
    store.check_family(family)
    table = FeatureTable.load(features)
    settings = {**config.model_dump(mode="json", exclude={"ce_batch"}), **family.identity}
    inputs: dict[str, Path | str] = {"crosscoder": crosscoder, "cache": cache, "features": features}
    models = family.fingerprints
    with Stage.open(out, name="contexts", config=settings, inputs=inputs, models=models, remake=True) as stage:
        if not stage.done:
            _write(stage, dictionary, store, family, table, config)
    return Path(out)


def _write(
    stage: Stage,
    crosscoder: Crosscoder,
    store: ActivationStore,
    family: ModelFamily,
    table: FeatureTable,
    config: FeaturesConfig,
) -> None:
    live, n_contexts, outputs = np.flatnonzero(~table.dead), 0, []
    if len(live):
        groups = all_contexts(crosscoder, store, family.tokenizer, table, config)
        n_contexts, outputs = write_contexts(stage.folder / CONTEXTS_FILE, groups), [CONTEXTS_FILE]
    if len(live) and config.n_promoted:
        write_promoted(stage.folder / PROMOTED_FILE, _promoted(crosscoder, family, live.tolist(), config))
        outputs.append(PROMOTED_FILE)
    stage.finish(outputs=outputs, counts={"features": len(live), "contexts": n_contexts})


def _promoted(
    crosscoder: Crosscoder, family: ModelFamily, features: Sequence[int], config: FeaturesConfig
) -> Iterator[PromotedGroup]:
    found: dict[str, tuple[Ends, Ends]] = {}
    scale, n_tokens = model_scale(crosscoder).detach(), len(family.tokenizer)
    for index, name in enumerate(crosscoder.model_names):
        directions = crosscoder.W_dec[list(features), index].detach() * scale[index]
        with activity(f"promoted tokens in {name}"), unloaded_afterwards(family[name]) as model:
            found[name] = promoted_ids(model, directions, n_tokens, n=config.n_promoted, final_norm=config.final_norm)
    texts: dict[int, str] = {}
    for first in range(0, len(features), GROUP_FEATURES):
        part = slice(first, first + GROUP_FEATURES)
        ids = np.unique(np.concatenate([end[0][part].ravel() for ends in found.values() for end in ends]))
        for token in set(ids.tolist()) - texts.keys():
            texts[token] = token_text(family.tokenizer, token)
        models = {
            name: {
                end: (np.searchsorted(ids, tokens[part]), values[part])
                for end, (tokens, values) in zip(("promoted", "suppressed"), ends, strict=True)
            }
            for name, ends in found.items()
        }
        yield PromotedGroup(np.asarray(features)[part], [texts[token] for token in ids.tolist()], models)
