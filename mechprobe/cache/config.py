"""Settings of ``mechprobe cache``."""

import datetime
import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from mechprobe.config import FrozenConfig
from mechprobe.data.truncation import Truncate
from mechprobe.types import Site

ReaderName = Literal["auto", "bridge", "plain"]
StoreDtype = Literal["float32", "float16", "bfloat16", "int8", "e4m3"]
_RESPONDER = re.compile(r"(?P<model>.+)@(?P<temperature>\d+(\.\d+)?)")


_CHANGE_NO_BYTE = ("reader", "models_in_memory")


class CacheConfig(FrozenConfig):
    """What is cached, and how. Everything here that changes a byte of the store is part of its identity.

    Attributes:
        sites: Places in the models, ``resid_post.<layer>``; all are read in one pass.
        dtype: Of the numbers on disk (docs/store.md says what each costs). The models' own dtype is the family's.
        responses: Who writes a response to every prompt that has none: ``model@temperature`` (``rl@0.0`` is greedy);
            several give several sequences a prompt, none leaves the prompt alone.
        max_new_tokens: Longest response that is written.
        max_prompts: Take so many prompts, drawn by seed; None takes all.
        max_tokens: Cache at most so many tokens; None takes all.
        max_length: Longest sequence; None takes the shortest context of the family.
        truncate: What becomes of a longer one. ``response``: a response is cut at its end, a prompt that does not fit
            alone is refused; ``right``, ``left``: prompt and response together lose their last, or first, tokens (a BOS
            stays); ``refuse``: nothing is cut; ``drop``: it is left out and counted.
        chat_template: Ask with the tokenizer's chat template, up to where the answer begins; the name of a model takes
            that model's template, where those of the family differ.
        system_prompt: First message of every conversation that has no system message.
        chat_date: Today's date for templates that ask for one, so that no clock changes the tokens.
        pack: Put several prompts into one sequence, whole and with the end token between, as pre-training corpora are;
            attention reaches over the borders.
        held_out_frac: Share of prompts kept from training.
        drop_first_positions: Leading positions of a sequence that are not cached (attention sinks of models that have
            no BOS); special tokens are never cached.
        shard_rows: Rows of a shard file at most.
        batch_tokens: Padded tokens of one forward pass at most.
        generation_batch: Prompts of one generation pass.
        reader: How a model is read: ``plain`` (hooks on the transformers model; only if its bits are the bridge's),
            ``bridge`` (TransformerBridge), or ``auto``: plain where its bits are the bridge's, else the bridge. It
            changes no byte.
        models_in_memory: ``one`` drops a model's weights when it has been read, ``all`` keeps them for what comes next.
        seed: Of the order of sequences, of the held-out split and of sampled responses.
    """

    sites: tuple[str, ...] = ()
    dtype: StoreDtype = "float32"
    responses: tuple[str, ...] = ()
    max_new_tokens: int = Field(default=64, ge=1)
    max_prompts: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_length: int | None = Field(default=None, ge=2)
    truncate: Truncate = "response"
    chat_template: bool | str = False
    system_prompt: str = ""
    chat_date: str = "2024-07-26"
    pack: bool = False
    held_out_frac: float = Field(default=0.05, ge=0, lt=1)
    drop_first_positions: int = Field(default=0, ge=0)
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
                raise ValueError(f"{name} = {list(values)} repeats an entry; give each once")
        for responder in self.responses:
            if _RESPONDER.fullmatch(responder) is None:
                raise ValueError(f"responses: '{responder}' cannot be read; write model@temperature, such as rl@0.0")
        if self.system_prompt and not self.chat_template:
            raise ValueError("system_prompt needs chat_template = true; plain text has no system message")
        if self.pack and self.responses:
            # The responses of several models to one prompt would stand in different sequences, held out and not.
            raise ValueError("pack and responses do not go together; pack is for documents, leave one out")
        return self

    @field_validator("chat_date")
    @classmethod
    def _is_a_day(cls, value: str) -> str:
        datetime.date.fromisoformat(value)
        return value

    def responders(self) -> list[tuple[str, str, float]]:
        """``(source, model, temperature)`` of every entry of ``responses``."""
        matches = [(source, _RESPONDER.fullmatch(source)) for source in self.responses]
        return [(source, match["model"], float(match["temperature"])) for source, match in matches if match]

    def identity(self) -> dict[str, object]:
        """The settings that change a byte of the store."""
        return {key: value for key, value in self.model_dump(mode="json").items() if key not in _CHANGE_NO_BYTE}

    def parsed_sites(self) -> list[Site]:
        """The sites, shallow to deep."""
        return sorted(Site.parse(site) for site in self.sites)
