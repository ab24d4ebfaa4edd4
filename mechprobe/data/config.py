"""Settings of the prompts and of the text rule: the sections ``prompts`` and ``text`` of a run configuration."""

import datetime
from collections.abc import Container
from pathlib import Path
from typing import Literal

from pydantic import field_validator, model_validator

from mechprobe.config import FrozenConfig
from mechprobe.errors import ConfigError, InputError

PromptFormat = Literal["auto", "jsonl", "text", "paragraphs", "parquet", "dataset"]
FieldName = Literal["prompt", "response", "task", "id", "messages"]
Truncate = Literal["response", "right", "left", "refuse", "drop"]
"""Treatment of a sequence that is too long.

``response`` cuts the end of the response, and refuses a prompt that is too long by itself. ``right`` and ``left`` cut the
last or first tokens of prompt and response together, but keep a leading BOS. ``refuse`` raises an error. ``drop`` leaves the
sequence out.
"""

HUB = "hub:"
_SUFFIXES: dict[str, PromptFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".txt": "text",
    ".text": "text",
    ".parquet": "parquet",
    ".pq": "parquet",
}


class TextConfig(FrozenConfig):
    """How prompts and tasks become token ids, in every stage alike."""

    chat_template: bool | str = False
    """Format prompts with the tokenizer's chat template, up to the start of the answer. A model name selects the template of
    that model, where the templates of the family differ."""
    system_prompt: str = ""
    """System message of every conversation that has none."""
    enable_thinking: bool | None = None
    """Value of ``enable_thinking`` that the template receives; None passes none."""
    chat_date: str = "2024-07-26"
    """Date given to templates that print the current date, so that tokens do not depend on the clock."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Whether a sequence begins with the BOS token: ``auto`` follows the tokenizer, or the template where there is one; under
    ``never`` no token is added. A prompt that spells the token never gets a second one."""

    @model_validator(mode="after")
    def _check(self) -> "TextConfig":
        for name, value in (("system_prompt", self.system_prompt), ("enable_thinking", self.enable_thinking)):
            if value not in ("", None) and not self.chat_template:
                raise ValueError(f"{name} needs chat_template = true, because plain text is not rendered by a template")
        return self

    @field_validator("chat_date")
    @classmethod
    def _is_a_day(cls, value: str) -> str:
        datetime.date.fromisoformat(value)
        return value

    @property
    def identity(self) -> dict[str, object]:
        """Entry ``text`` of what depends on the rule; empty for the default rule."""
        return {} if self == TextConfig() else {"text": self.model_dump(mode="json")}


class PromptsConfig(FrozenConfig):
    """The source of the prompts, and the names of its fields.

    Attributes:
        file: A file, a folder with a Hugging Face dataset, or ``hub:NAME``.
        format: ``jsonl``, ``text`` (one document per line), ``paragraphs`` (documents separated by blank lines), ``parquet``,
            ``dataset`` (loaded by the `datasets` library), or ``auto``, which goes by the name of the file.
        prompt_field: Field with the prompt.
        response_field: Field with the response; optional in a record.
        task_field: Field with the name of a group of prompts; optional in a record.
        id_field: Field with a unique name. A record without it is named by its line or row number.
        messages_field: Field with a list of ``{"role": ..., "content": ...}``, which is used instead of the prompt. If the last
            message is from the assistant, it is the response. Requires ``text.chat_template``. When empty, ``messages`` is
            used where a source has no prompts.
        subset: Configuration of a hub dataset that has several.
        split: Split of a dataset that has several.
        revision: Commit, tag or branch of a hub dataset.
    """

    file: str = ""
    format: PromptFormat = "auto"
    prompt_field: str = "prompt"
    response_field: str = "response"
    task_field: str = "task"
    id_field: str = "id"
    messages_field: str = ""
    subset: str = ""
    split: str = ""
    revision: str = ""

    @model_validator(mode="after")
    def _check(self) -> "PromptsConfig":
        used = [name for name in self.columns().values() if name]
        if len(set(used)) != len(used):
            raise ValueError(f"two fields use the same column ({', '.join(used)}); give each field its own column")
        if not self.prompt_field and not self.messages_field:
            raise ValueError("prompt_field is empty; give the name of the field with the prompt")
        hub = self.file.startswith(HUB)
        if hub and self.format not in ("auto", "dataset"):
            raise ValueError(f"{self.file} is a hub dataset, so its format cannot be {self.format!r}; leave it out")
        if not hub and self.file and (self.subset or self.revision):
            raise ValueError(f"subset and revision apply to hub datasets, not to {self.file}; remove them")
        return self

    def columns(self) -> dict[FieldName, str]:
        """Column of each field; a field that is not used has an empty name."""
        rest: dict[FieldName, str] = {"response": self.response_field, "task": self.task_field, "id": self.id_field}
        return (
            {"messages": self.messages_field, **rest} if self.messages_field else {"prompt": self.prompt_field, **rest}
        )

    def for_columns(self, known: Container[str]) -> "PromptsConfig":
        """These settings for a source with the columns ``known``: ``messages`` is read if it has them and no prompt."""
        if self.messages_field or self.prompt_field in known or "messages" not in known:
            return self
        return self.model_copy(update={"messages_field": "messages"})

    def renamed(self) -> dict[FieldName, str]:
        """Optional fields whose column was set explicitly; at least one record must have each of them."""
        defaults = type(self).model_fields
        return {
            name: column
            for name, column in self.columns().items()
            if name in ("response", "task", "id") and column and column != defaults[f"{name}_field"].default
        }

    def detected(self) -> PromptFormat:
        """The format; under ``auto`` the name of the file decides.

        Raises:
            ConfigError: No file is given, or its name has no known suffix.
            InputError: The folder of the file cannot be read.
        """
        if not self.file:
            raise ConfigError("No prompts are given; give --prompts FILE, or set prompts.file in the configuration.")
        if self.file.startswith(HUB):
            return "dataset"
        path = Path(self.file)
        try:
            is_folder = path.is_dir()
        except PermissionError:
            raise InputError(f"{path} cannot be read: permission denied; change its permissions.") from None
        if self.format != "auto":
            return self.format
        if is_folder:
            return "dataset"
        suffix = path.suffix.lower()
        if suffix not in _SUFFIXES:
            raise ConfigError(
                f"The name of {path} does not show its format; "
                "set prompts.format to jsonl, text, paragraphs, parquet or dataset."
            )
        return _SUFFIXES[suffix]
