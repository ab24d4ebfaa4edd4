"""One language model: where it lies, what its bytes are, and the two ways through it.

``hf`` is the plain `transformers` model (fast: generation and interventions run on it); ``bridge`` is a
TransformerBridge over a copy of its own, because booting a bridge wraps the model it is given in place.
Both use eager attention, so that their bits agree.
"""

import gc
import json
import tempfile
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mechprobe.errors import ModelError
from mechprobe.files import sha256_bytes, sha256_file

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DeviceMap = str | dict[str, int | str]
"""``auto``, ``balanced``, ``sequential``, or the device (``cuda:0`` as 0, ``cpu``, ``disk``) of every named part of the model."""

DTYPES = ("float32", "bfloat16", "float16")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "MPS backend out of memory")
_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


def resolve_folder(path_or_name: str | Path, *, role: str) -> tuple[Path, str | None]:
    """Local folder of a model: the folder itself, or the snapshot of a hub name (downloaded when not cached).

    Args:
        path_or_name: A folder, or ``org/name``, or ``org/name@revision`` (branch, tag or commit of the hub).
        role: Name of the model in messages.

    Returns:
        ``(folder, commit)``; the commit of the hub that the folder is the snapshot of, None for a folder given.

    Raises:
        ModelError: Neither a folder with a config.json nor a hub name that can be had.
    """
    path = Path(path_or_name)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"Model {role}: {path} has no config.json; give a folder written by save_pretrained.")
        if not any(match for pattern in _WEIGHTS for match in path.glob(pattern)):
            raise ModelError(f"Model {role}: {path} holds no weights; give a folder written by save_pretrained.")
        _check_headers(path, role=role)
        return path, None
    text, at, revision = str(path_or_name).partition("@")
    if path.is_absolute() or text.startswith((".", "~")) or text.count("/") != 1 or (at and not revision):
        raise ModelError(
            f"Model {role}: {path} does not exist; give a model folder or a hub name such as org/name or org/name@revision."
        )
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(text, revision=revision or None, allow_patterns=_HUB_PATTERNS))
        return folder, folder.name  # the hub's cache names a snapshot by its commit
    except Exception as error:  # noqa: BLE001 - the hub client raises many unrelated types
        reason = type(error).__name__
        raise ModelError(
            f"Model {role}: {path_or_name} is no local folder, and the hub did not give it ({reason}); "
            "check path and revision, or download the model first."
        ) from None


def check_device(device: str) -> None:
    """Raise `ModelError` for a device that torch does not know or this machine does not have."""
    import torch

    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(
            f"Device '{device}' cannot be used here ({_first_line(error)}); see `mechprobe doctor`."
        ) from None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has no memory left for a tensor."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)


def input_device(model: "PreTrainedModel") -> "torch.device":
    """Where a model takes its token ids; the parts of a spread model that lie on disk count to the CPU."""
    import torch

    weight: Any = model.get_input_embeddings().weight
    if weight.device.type != "meta":
        return weight.device
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or "cpu")


def _check_headers(folder: Path, *, role: str) -> None:
    """Raise `ModelError` for a weight file that is cut short or something else, before any work is begun."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"Model {role}: {file} is no safetensors file that can be read ({_first_line(error)}); copy it again."
            ) from None


def weights_fingerprint(folder: Path) -> str:
    """sha256 over the weight files and the config of a model folder, in name order."""
    files = sorted({file for pattern in _WEIGHTS for file in folder.glob(pattern)} | {folder / "config.json"})
    return sha256_bytes("".join(f"{file.name} {sha256_file(file)}\n" for file in files).encode())


def load_tokenizer(folder: Path, *, role: str, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder, padding on the left, with a pad token (the end token where it has none)."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # noqa: BLE001 - any failure here means: no usable tokenizer in the folder
        raise ModelError(f"Model {role}: no tokenizer can be loaded from {folder} ({_first_line(error)}).") from None
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(f"Model {role}: the tokenizer in {folder} has neither a pad nor an end token; set one.")
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of vocabulary, special tokens and of how probe texts are split: equal for tokenizers that agree."""
    probes = ["Ab 12+3=x?", "  two  blanks\nand a line", "naïve 😀 \u00a0end"]
    vocabulary = sorted(tokenizer.get_vocab().items())
    special = {name: str(value) for name, value in sorted(tokenizer.special_tokens_map.items())}
    special.pop("pad_token", None)
    splits = [tokenizer(text).input_ids for text in probes]
    return sha256_bytes(json.dumps([vocabulary, special, splits], ensure_ascii=False).encode())


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"[:200]


class LanguageModel:
    """One model of a family, loaded when first used.

    Attributes:
        name: Role in the family, for example ``rl`` or ``rl@step_000040``.
        path: Local folder.
        revision: Commit of the hub, where the model was given by a hub name.
        device_map: Where each part of the model lies, as accelerate takes it; None puts all of it on ``device``.
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
            raise ModelError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
        check_device(device)
        self.name = name
        self.path, self.revision = resolve_folder(path_or_name, role=name)
        self.device = device
        self.device_map = device_map
        self.dtype = dtype
        self.trust_remote_code = trust_remote_code

    def __getstate__(self) -> dict[str, Any]:
        """What another process needs to load the model itself."""
        return {name: value for name, value in self.__dict__.items() if name not in ("hf", "bridge", "_offload_folder")}

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, {str(self.path)!r})"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over weights and config; of a model of the hub ``commit:sha256``."""
        digest = weights_fingerprint(self.path)
        return digest if self.revision is None else f"{self.revision}:{digest}"

    @cached_property
    def config(self) -> Any:
        """The transformers config."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.path, trust_remote_code=self.trust_remote_code)
        except Exception as error:  # noqa: BLE001 - any failure here means: not a usable config
            raise ModelError(
                f"Model {self.name}: {self.path}/config.json cannot be used ({_first_line(error)})."
            ) from None

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer, padding on the left."""
        return load_tokenizer(self.path, role=self.name, trust_remote_code=self.trust_remote_code)

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return int(self.config.get_text_config().num_hidden_layers)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.config.get_text_config().hidden_size)

    @property
    def max_context(self) -> int:
        """Longest sequence in tokens that the model takes."""
        config = self.config.get_text_config()
        for field in _CONTEXT_FIELDS:
            value = getattr(config, field, None)
            if isinstance(value, int) and value > 0:
                return value
        return 1 << 30

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
            raise ModelError(f"Model {self.name}: TransformerBridge cannot adapt it ({_first_line(error)}).") from None
        bridge.eval()
        return bridge

    @property
    def input_device(self) -> "torch.device":
        """Where token ids must lie: with a device map, the place of the embedding."""
        import torch

        if self.device_map is None:
            return torch.device(self.device)
        return input_device(self.bridge.original_model if "bridge" in self.__dict__ else self.hf)

    def release(self, *ways: Literal["hf", "bridge"]) -> None:
        """Drop the loaded weights (of the named ways only, where some are named); they are loaded again when next used."""
        import torch

        loaded = [name for name in ways or ("hf", "bridge") if name in self.__dict__]
        for name in loaded:
            del self.__dict__[name]
        if not loaded:
            return
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @property
    def _torch_dtype(self) -> "torch.dtype":
        import torch

        return getattr(torch, self.dtype)

    def _load(self) -> "PreTrainedModel":
        from transformers import AutoModelForCausalLM

        placed: dict[str, Any] = {}
        if self.device_map is not None:
            placed = {"device_map": self.device_map}
            if isinstance(self.device_map, dict) and "disk" in self.device_map.values():
                placed["offload_folder"] = self._offload_folder.name
        try:
            model = AutoModelForCausalLM.from_pretrained(
                self.path,
                dtype=self._torch_dtype,
                attn_implementation="eager",
                trust_remote_code=self.trust_remote_code,
                **placed,
            )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(f"Model {self.name}: {self.path} cannot be loaded ({_first_line(error)}).") from None
        model.requires_grad_(False)
        if self.device_map is None:
            model.to(self.device)  # pyright: ignore[reportArgumentType]
        return model.eval()

    @cached_property
    def _offload_folder(self) -> "tempfile.TemporaryDirectory[str]":
        """Where accelerate puts the parts of a device map that are on disk; gone with the model object."""
        return tempfile.TemporaryDirectory(prefix="mechprobe_offload_")
