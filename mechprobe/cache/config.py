"""Settings of ``mechprobe cache``."""

import re
from typing import Literal

from pydantic import Field, model_validator

from mechprobe.config import FrozenConfig
from mechprobe.data.config import TextConfig, Truncate
from mechprobe.types import Site

ReaderName = Literal["auto", "bridge", "plain"]
StoreDtype = Literal["float32", "float16", "bfloat16", "int8", "e4m3"]

SCALE_ROWS = 65536
"""Number of training rows that give the scale where rows are served in whole shards."""

_RESPONDER = re.compile(r"(?P<model>.+)@(?P<temperature>\d+(\.\d+)?)")
_CHANGE_NO_BYTE = ("reader", "models_in_memory")


class CacheConfig(FrozenConfig):
    """Settings of an activation store. Every setting that changes a byte of the store is part of its identity.

    Attributes:
        sites: Sites in the models, ``resid_post.<layer>``. One forward pass records all of them.
        dtype: Dtype on disk (docs/store.md compares them). ``ModelFamily`` sets the dtype in which the models run.
        responses: Models that respond to every prompt without a response, as ``model@temperature`` (``rl@0.0`` is
            greedy). Each entry makes one sequence per prompt. When empty, the prompts are cached without responses.
        max_new_tokens: Maximum length of a generated response, in tokens.
        max_prompts: Number of prompts to draw at random; None takes all.
        max_tokens: Maximum number of tokens to cache; None caches all.
        max_length: Maximum length of a sequence, in tokens; None takes the shortest context length of the family.
        truncate: How longer sequences are handled. ``response`` cuts the end of the response and refuses a prompt that
            does not fit alone. ``right`` and ``left`` cut the last or first tokens of prompt and response together and
            keep a BOS token. ``refuse`` raises an error. ``drop`` leaves the prompt out and counts it.
        text: How prompts become token ids. A run sets it once, in its section ``text``, for every stage.
        pack: Put several whole prompts into one sequence, separated by the EOS token, as in pretraining. Attention
            crosses the borders between prompts.
        held_out_frac: Fraction of the prompts that are held out from training; prompts that say the same go together.
        drop_first_positions: Number of leading positions that are not cached (attention sinks of models without a BOS
            token). Special tokens are never cached. The rule is also that of the crosscoder and of all later stages.
        drop_norm_above: Drop the positions where the norm of the residual of any model at any site exceeds this multiple of the
            model's median norm (our rule). The rows stay on disk, but training, features, selection and edits leave them
            out. None drops none.
        shard_rows: Maximum number of rows in a shard file.
        batch_tokens: Maximum number of tokens in a forward pass, padding included.
        generation_batch: Number of prompts in a generation batch.
        reader: How residuals are read: ``plain`` (hooks on the transformers model, refused unless its bits equal those
            of the bridge), ``bridge`` (TransformerBridge), or ``auto`` (plain where the bits are equal, else the
            bridge). The choice changes no byte of the store.
        models_in_memory: ``one`` releases the weights of a model once its shards are written; ``all`` keeps them for
            later stages.
        seed: Seed of the sequence order, the held-out split and sampled responses.
    """

    sites: tuple[str, ...] = ()
    dtype: StoreDtype = "float32"
    responses: tuple[str, ...] = ()
    max_new_tokens: int = Field(default=64, ge=1)
    max_prompts: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_length: int | None = Field(default=None, ge=2)
    truncate: Truncate = "response"
    text: TextConfig = TextConfig()
    pack: bool = False
    held_out_frac: float = Field(default=0.05, ge=0, lt=1)
    drop_first_positions: int = Field(default=0, ge=0)
    drop_norm_above: float | None = Field(default=None, gt=1)
    shard_rows: int = Field(default=32768, ge=1)
    batch_tokens: int = Field(default=8192, ge=1)
    generation_batch: int = Field(default=256, ge=1)
    reader: ReaderName = "auto"
    models_in_memory: Literal["one", "all"] = "one"
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "CacheConfig":
        for name in ("sites", "responses"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} = {list(values)} contains an entry twice; give each entry once")
        for responder in self.responses:
            if _RESPONDER.fullmatch(responder) is None:
                raise ValueError(f"responses: '{responder}' is not valid; write model@temperature, such as rl@0.0")
        if self.pack and self.responses:
            # The responses of several models to one prompt would be in different sequences, some of them held out.
            raise ValueError("pack and responses cannot be combined; pack is for documents, so leave one of them out")
        return self

    def responders(self) -> list[tuple[str, str, float]]:
        """``(source, model, temperature)`` of every entry of ``responses``."""
        matches = [(source, _RESPONDER.fullmatch(source)) for source in self.responses]
        return [(source, match["model"], float(match["temperature"])) for source, match in matches if match]

    def identity(self) -> dict[str, object]:
        """The settings that change a byte of the store."""
        left_out = {*_CHANGE_NO_BYTE, *(() if self.drop_norm_above else ("drop_norm_above",))}
        return {key: value for key, value in self.model_dump(mode="json").items() if key not in left_out}

    def parsed_sites(self) -> list[Site]:
        """The sites, shallow to deep."""
        return sorted(Site.parse(site) for site in self.sites)


class StoreSubset(FrozenConfig):
    """Size of the store that is kept on disk when training runs without a whole store.

    Attributes:
        rows: Minimum number of rows in the leading shards, and maximum number of held-out rows behind them.
        scale_rows: Minimum number of training rows in the leading shards. These rows give the scale.
    """

    rows: int = Field(default=131072, ge=1)
    scale_rows: int = Field(default=SCALE_ROWS, ge=1)
