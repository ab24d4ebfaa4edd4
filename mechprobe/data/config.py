"""Where prompts come from: the section ``prompts`` of a run configuration."""

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from mechprobe.config import FrozenConfig
from mechprobe.errors import ConfigError, InputError

PromptFormat = Literal["auto", "jsonl", "text", "paragraphs", "parquet", "dataset"]
FieldName = Literal["prompt", "response", "task", "id", "messages"]
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


class PromptsConfig(FrozenConfig):
    """What the activation cache reads, and what its fields are called there.

    Attributes:
        file: A file, a folder of a Hugging Face dataset, or ``hub:NAME``.
        format: ``jsonl``, ``text`` (a document a line), ``paragraphs`` (documents apart by blank lines), ``parquet``,
            ``dataset`` (whatever the `datasets` library loads), or ``auto``: by the file's name.
        prompt_field: Field of the prompt.
        response_field: Field of what follows it; a record need not have it.
        task_field: Field of the name of a group of prompts; a record need not have it.
        id_field: Field of a unique name; the number of the line or row where a record has none.
        messages_field: Field of a list of ``{"role": ..., "content": ...}``, read in place of the prompt; a last
            message of the assistant is the response. Empty for none. It needs ``cache.chat_template``.
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
            raise ValueError(f"two fields are read from one column of {', '.join(used)}; name each once")
        if not self.prompt_field and not self.messages_field:
            raise ValueError("prompt_field is empty; name the field that holds the prompt")
        hub = self.file.startswith(HUB)
        if hub and self.format not in ("auto", "dataset"):
            raise ValueError(f"{self.file} is a dataset of the hub; leave format = {self.format!r} out")
        if not hub and self.file and (self.subset or self.revision):
            raise ValueError(f"subset and revision are of hub datasets, and {self.file} is none; leave them out")
        return self

    def columns(self) -> dict[FieldName, str]:
        """What is read, and under which name; fields that are not read have none."""
        first: dict[FieldName, str] = (
            {"messages": self.messages_field} if self.messages_field else {"prompt": self.prompt_field}
        )
        return {**first, "response": self.response_field, "task": self.task_field, "id": self.id_field}

    def renamed(self) -> dict[FieldName, str]:
        """The optional fields whose name was given: at least one record must have each."""
        defaults = type(self).model_fields
        return {
            name: column
            for name, column in self.columns().items()
            if name in ("response", "task", "id") and column and column != defaults[f"{name}_field"].default
        }

    def detected(self) -> PromptFormat:
        """The format, by the name of the file where none is given.

        Raises:
            ConfigError: No file is given, or its name does not tell the format.
            InputError: The folder of the file may not be read.
        """
        if not self.file:
            raise ConfigError("No prompts are given; write --prompts FILE, or prompts.file in the configuration.")
        if self.file.startswith(HUB):
            return "dataset"
        path = Path(self.file)
        try:
            is_folder = path.is_dir()
        except PermissionError:
            raise InputError(f"{path} cannot be read: permission denied.") from None
        if self.format != "auto":
            return self.format
        if is_folder:
            return "dataset"
        suffix = path.suffix.lower()
        if suffix not in _SUFFIXES:
            raise ConfigError(
                f"The format of {path} cannot be told from its name; "
                "give prompts.format: jsonl, text, paragraphs, parquet or dataset."
            )
        return _SUFFIXES[suffix]
