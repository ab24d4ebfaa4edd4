"""One language model: its folder and tokenizer, and the two ways to run it.

``hf`` is the plain `transformers` model, on which generation and interventions run. ``bridge`` is a TransformerBridge over
a copy of its own, because booting a bridge wraps the model that it is given in place. Both use eager attention, so
that their results agree bit by bit.
"""

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mechprobe.errors import ModelError, first_line
from mechprobe.files import sha256_bytes, sha256_file
from mechprobe.models.devices import (
    DeviceMap,
    check_device,
    check_device_map,
    free_memory,
    input_device,
    is_out_of_memory,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16")
_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def resolve_folder(path_or_name: str | Path, *, role: str) -> tuple[Path, str | None]:
    """Find the local folder of a model; a model of the hub is downloaded unless it is cached.

    Args:
        path_or_name: A folder, or ``org/name``, or ``org/name@revision`` (branch, tag or commit of the hub).
        role: Name of the model in error messages.

    Returns:
        ``(folder, commit)``. The commit is that of the hub's snapshot, and None for a local folder.

    Raises:
        ModelError: The folder is incomplete or damaged, or the hub does not provide the model.
    """
    path = Path(path_or_name)
    if path.is_dir():
        _check_folder(path, role=role)
        return path, None
    text, at, revision = str(path_or_name).partition("@")
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") != 1 or (at and not revision):
        raise ModelError(
            f"Model {role}: {path} does not exist; give a model folder, or a hub name such as org/name or "
            "org/name@revision."
        )
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(text, revision=revision or None, allow_patterns=_HUB_PATTERNS))
        return folder, folder.name  # the cache of the hub names a snapshot by its commit
    except Exception as error:  # noqa: BLE001 - the hub client raises many unrelated types
        raise ModelError(
            f"Model {role}: {path_or_name} is not a local folder, and the hub did not provide it "
            f"({type(error).__name__}); check the name and revision, or download the model first."
        ) from None


def _check_folder(folder: Path, *, role: str) -> None:
    """Raise `ModelError` for a folder without config or weights, or with a damaged weight file."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"Model {role}: {folder} has no config.json; give a folder written by save_pretrained.")
    if not any(match for pattern in _WEIGHTS for match in folder.glob(pattern)):
        raise ModelError(f"Model {role}: {folder} has no weights; give a folder written by save_pretrained.")
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"Model {role}: {file} is not a readable safetensors file ({first_line(error)}); copy it again."
            ) from None


def weights_fingerprint(folder: Path) -> str:
    """sha256 over the weight files and the config of a model folder, in the order of their names."""
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)} | {folder / "config.json"})
    return sha256_bytes("".join(f"{file.name} {sha256_file(file)}\n" for file in files).encode())


def load_tokenizer(folder: Path, *, role: str, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model folder. It pads on the left, with the end token if it has no pad token.

    Raises:
        ModelError: The folder holds no usable tokenizer, or the tokenizer has neither pad nor end token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # noqa: BLE001 - every failure means that the folder holds no usable tokenizer
        raise ModelError(
            f"Model {role}: the tokenizer in {folder} cannot be loaded ({first_line(error)}); "
            "save it there with save_pretrained."
        ) from None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"Model {role}: the tokenizer in {folder} has neither a pad nor an end token; set one and save it again."
            )
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of the vocabulary, the special tokens, and the ids of three probe texts."""
    probes = ["Ab 12+3=x?", "  two  blanks\nand a line", "naïve 😀 \u00a0end"]
    vocabulary = sorted(tokenizer.get_vocab().items())
    special = {name: str(value) for name, value in sorted(tokenizer.special_tokens_map.items())}
    special.pop("pad_token", None)
    splits = [tokenizer(text).input_ids for text in probes]
    return sha256_bytes(json.dumps([vocabulary, special, splits], ensure_ascii=False).encode())


class LanguageModel:
    """One model of a family. Weights are loaded on first use.

    Attributes:
        name: Name in the family, for example ``rl`` or ``rl@step_000040``.
        path: Local folder.
        revision: Commit of a model of the hub, None for a local folder.
        device: torch device of the model.
        device_map: How accelerate distributes the modules over devices; None places all of them on ``device``.
        dtype: Name of the weights' dtype, one of `DTYPES`.
        trust_remote_code: Whether Python code in the model folder may run.
    """

    def __init__(
        self,
        name: str,
        path_or_name: str | Path,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        device_map: DeviceMap | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if dtype not in DTYPES:
            raise ModelError(f"dtype '{dtype}' is unknown; give {', '.join(DTYPES)}.")
        check_device(device)
        if device_map is not None:
            check_device_map(device_map)
        self.name, self.dtype, self.trust_remote_code = name, dtype, trust_remote_code
        self.path, self.revision = resolve_folder(path_or_name, role=name)
        self.device, self.device_map = device, device_map
        self._family_end_ids: tuple[int, ...] = ()
        self._family_token_ids = 0

    def __getstate__(self) -> dict[str, Any]:
        """State without the loaded weights; another process loads them itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("hf", "bridge", "_offload_folder")}

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, {str(self.path)!r})"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over weights and config; ``commit:sha256`` for a model of the hub."""
        digest = weights_fingerprint(self.path)
        return digest if self.revision is None else f"{self.revision}:{digest}"

    @cached_property
    def config(self) -> Any:
        """The transformers config."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)
        except Exception as error:  # noqa: BLE001 - every failure means that the config is unusable
            raise ModelError(
                f"Model {self.name}: {self.path}/config.json cannot be used ({first_line(error)}); check the file."
            ) from None

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer; it pads on the left."""
        return load_tokenizer(self.path, role=self.name, trust_remote_code=self.trust_remote_code)

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return int(self.config.get_text_config().num_hidden_layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def max_context(self) -> int:
        """Longest sequence that the model accepts, in tokens; 2³⁰ if the config states none."""
        config = self.config.get_text_config()
        for field in _CONTEXT_FIELDS:
            value = getattr(config, field, None)
            if isinstance(value, int) and value > 0:
                return value
        return 1 << 30

    @cached_property
    def own_end_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a response, from the model's own generation settings and tokenizer."""
        from transformers import GenerationConfig

        try:
            settings = GenerationConfig.from_pretrained(self.path)
        except OSError:
            settings = GenerationConfig.from_model_config(self.config)
        configured: Any = settings.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return tuple(sorted({int(token) for token in (*ids, self.tokenizer.eos_token_id) if token is not None}))  # pyright: ignore[reportArgumentType]

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a response: those of every model of the family, or its own outside a family."""
        return self._family_end_ids or self.own_end_ids

    @property
    def n_rows(self) -> int:
        """Number of token ids that have a row in the embedding, by the config."""
        return int(self.config.get_text_config().vocab_size)

    @property
    def n_token_ids(self) -> int:
        """Ids below this number have a row in the embedding of every model of the family, or of this one outside a family."""
        return self._family_token_ids or self.n_rows

    def join(self, *, end_ids: Sequence[int], n_token_ids: int) -> None:
        """Set what all models of a family share: the tokens that end a response, and the ids that all of them know."""
        self._family_end_ids, self._family_token_ids = tuple(end_ids), n_token_ids

    @cached_property
    def hf(self) -> "PreTrainedModel":
        """The plain transformers model: eager attention, evaluation mode, no gradients."""
        return self._load()

    @cached_property
    def bridge(self) -> Any:
        """A TransformerBridge over its own copy of the weights."""
        from transformer_lens.model_bridge import TransformerBridge

        try:
            bridge = TransformerBridge.boot_transformers(
                str(self.path),
                hf_model=self._load(),
                tokenizer=self.tokenizer,
                device=self.device,
                dtype=self._torch_dtype,
            )
        except (ValueError, NotImplementedError, KeyError, AttributeError) as error:
            raise ModelError(
                f"Model {self.name}: TransformerBridge does not support its architecture ({first_line(error)})."
            ) from None
        bridge.eval()
        return bridge

    @property
    def input_device(self) -> "torch.device":
        """Device of the token ids; with a device map, that of the embedding."""
        import torch

        if self.device_map is None:
            return torch.device(self.device)
        return input_device(self.bridge.original_model if "bridge" in self.__dict__ else self.hf)

    def release(self, *ways: Literal["hf", "bridge"]) -> None:
        """Free the loaded weights, which are loaded again on next use.

        Args:
            ways: Which of ``hf`` and ``bridge`` to free; both if none is named.
        """
        loaded = [name for name in ways or ("hf", "bridge") if name in self.__dict__]
        for name in loaded:
            del self.__dict__[name]
        if loaded:
            free_memory()

    @property
    def _torch_dtype(self) -> "torch.dtype":
        import torch

        return getattr(torch, self.dtype)

    def _load(self) -> "PreTrainedModel":
        from transformers import AutoModelForCausalLM

        options: dict[str, Any] = {"attn_implementation": "eager", "trust_remote_code": self.trust_remote_code}
        if self.device_map is not None:
            options["device_map"] = self.device_map
            if isinstance(self.device_map, dict) and "disk" in self.device_map.values():
                options["offload_folder"] = self._offload_folder.name
        try:
            with _without_progress_bars():
                model = AutoModelForCausalLM.from_pretrained(self.path, dtype=self._torch_dtype, **options)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"Model {self.name}: {self.path} cannot be loaded ({first_line(error)}); "
                "check the folder, dtype and device_map."
            ) from None
        model.requires_grad_(False)
        if self.device_map is None:
            model.to(self.device)  # pyright: ignore[reportArgumentType]
        return model.eval()

    @cached_property
    def _offload_folder(self) -> "tempfile.TemporaryDirectory[str]":
        """Folder in which accelerate keeps modules that a device map places on disk; deleted with this object."""
        return tempfile.TemporaryDirectory(prefix="mechprobe_offload_")


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    """Hide the bars of transformers, because every stage shows its own line."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
