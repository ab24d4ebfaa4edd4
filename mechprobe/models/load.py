"""One language model: its folder and tokenizer, and the two ways to run it.

``hf`` is the plain `transformers` model, on which generation and interventions run. ``bridge`` is a TransformerBridge over
a copy of its own, because booting a bridge wraps the model that it is given in place. Both use eager attention unless another
kind is asked for, so that their results agree bit by bit.
"""

import tempfile
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mechprobe.environment import require
from mechprobe.errors import MechprobeError, ModelError, first_line, is_out_of_memory
from mechprobe.memory import free_memory
from mechprobe.models.checkpoint_fit import Architecture, check_config, quietly
from mechprobe.models.devices import DeviceMap, check_device, check_device_map, input_device
from mechprobe.models.folder import ModelFolder, find_model
from mechprobe.models.precision import AUTO, check_attention, check_dtype, guard_bfloat16, on_gpu, stored_dtype
from mechprobe.models.tokenizers import load_tokenizer
from mechprobe.models.weights import inspect, load_weights
from mechprobe.progress import activity, loading

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from mechprobe.models.architectures import Behaviour

_CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
GENERATION = "generation_config.json"


def context_of(config: Any) -> int:
    """Longest sequence that a model accepts by its config, in tokens; 2³⁰ if that states none."""
    for field in _CONTEXT_FIELDS:
        value = getattr(config.get_text_config(), field, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1 << 30


class LanguageModel:
    """One model of a family. Weights are loaded on first use.

    Attributes:
        name: Name in the family, for example ``rl`` or ``rl@step_000040``.
        folder: Where its files are, and those of its base if it is an adapter.
        device: torch device of the model.
        device_map: How accelerate distributes the modules over devices; None places all of them on ``device``.
        attention: How attention is computed, ``eager``, ``sdpa`` or ``flash``.
        tf32: Whether float32 matrix products of forward calls use TF32 on a GPU.
        trust_remote_code: Whether Python code in the model folder may run.
    """

    def __init__(
        self,
        name: str,
        path_or_name: str | Path,
        *,
        device: str = "cpu",
        dtype: str = AUTO,
        device_map: DeviceMap | None = None,
        attention: str = "eager",
        tf32: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        check_dtype(dtype)
        check_device(device)
        if device_map is not None:
            check_device_map(device_map)
            require("accelerate", "A device_map")
        self.name, self.trust_remote_code = name, trust_remote_code
        self.folder = find_model(path_or_name, role=name, trust_remote_code=trust_remote_code)
        self.device, self.device_map = device, device_map
        self._asked_dtype, self.attention = dtype, attention
        check_attention(attention, name, self.dtype, device if self.on_gpu else "cpu")
        self.tf32 = tf32 and self.on_gpu and self.dtype == "float32"
        if self.dtype == "bfloat16" and not self.on_gpu:
            guard_bfloat16()
        self._family_end_ids: tuple[int, ...] = ()
        self._family_token_ids = 0

    def __getstate__(self) -> dict[str, Any]:
        """State without the loaded weights; another process loads them itself."""
        own = ("hf", "bridge", "_offload_folder", "_merged_folder")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __repr__(self) -> str:
        return f"LanguageModel({self.name!r}, {str(self.path)!r})"

    @property
    def on_gpu(self) -> bool:
        """Whether a part of the model is on another device than the CPU."""
        return on_gpu(self.device, self.device_map)

    @cached_property
    def dtype(self) -> str:
        """Name of the dtype in which the model runs. ``auto`` is that of its files on a GPU, and float32 on a CPU."""
        if self._asked_dtype != AUTO:
            return self._asked_dtype
        return stored_dtype(self.folder.root.path, role=self.name) if self.on_gpu else "float32"

    @property
    def path(self) -> Path:
        """The folder of the model, or of the adapter."""
        return self.folder.path

    @property
    def revision(self) -> str | None:
        """Commit of a model of the hub; None for a local folder."""
        return self.folder.revision

    @property
    def fingerprint(self) -> str:
        """sha256 over weights and config; ``commit:sha256`` for a model of the hub; ``BASE+adapter:…`` for an adapter."""
        return self.folder.fingerprint

    @cached_property
    def config(self) -> Any:
        """The transformers config; for an adapter, that of its base."""
        from transformers import AutoConfig

        path = self.folder.root.path
        try:
            with quietly():
                config = AutoConfig.from_pretrained(path, trust_remote_code=self.trust_remote_code)
        except Exception as error:  # noqa: BLE001 - every failure means that the config is unusable
            reason = f"{path}/config.json cannot be used ({first_line(error)}); check the file"
            if "trust_remote_code" in str(error):
                reason = f"{path} needs Python code of its own; give --trust-remote-code if you trust it"
            raise ModelError(f"Model {self.name}: {reason}.") from None
        check_config(config, role=self.name, path=path)
        return config

    @cached_property
    def architecture(self) -> Architecture | None:
        """What the checkpoint is made of, from its headers; None if that is known only when the model is loaded.

        Raises:
            ModelError: The tensors are not those of the architecture, or an adapter does not fit its base.
            DependencyError: An adapter needs peft.
        """
        return inspect(self.folder, self.config, role=self.name, trust_remote_code=self.trust_remote_code)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer; it pads on the left. An adapter without one has that of its base."""
        return load_tokenizer(self.folder.tokenizer, role=self.name, trust_remote_code=self.trust_remote_code)

    @cached_property
    def tokenizers(self) -> "Mapping[str, PreTrainedTokenizerBase]":
        """Name to tokenizer, for every model of its family; the family sets it."""
        return {self.name: self.tokenizer}

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
        return context_of(self.config)

    @cached_property
    def own_end_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a response, from the model's own generation settings and tokenizer."""
        from transformers import GenerationConfig

        place = next((path for path in (self.path, self.folder.root.path) if (path / GENERATION).is_file()), None)
        settings = (
            GenerationConfig.from_model_config(self.config)
            if place is None
            else GenerationConfig.from_pretrained(place)
        )
        configured: Any = settings.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return tuple(sorted({int(token) for token in (*ids, self.tokenizer.eos_token_id) if token is not None}))  # pyright: ignore[reportArgumentType]

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a response: those of every model of the family, or its own outside a family."""
        return self._family_end_ids or self.own_end_ids

    @property
    def pad_id(self) -> int:
        """Id that fills padding: the tokenizer's, or 0 where a model has no embedding for that. Padding is masked."""
        pad_id = int(str(self.tokenizer.pad_token_id))
        return pad_id if pad_id < self.n_token_ids else 0

    @property
    def n_rows(self) -> int:
        """Number of token ids that have a row in the embedding."""
        known = self.architecture
        return int(self.config.get_text_config().vocab_size) if known is None else known.n_rows

    @property
    def n_token_ids(self) -> int:
        """Ids below this number have a row in the embedding of every model of the family, or of this one outside a family."""
        return self._family_token_ids or self.n_rows

    def join(self, *, end_ids: Sequence[int], n_token_ids: int) -> None:
        """Set what all models of a family share: the tokens that end a response, and the ids that all of them know."""
        self._family_end_ids, self._family_token_ids = tuple(end_ids), n_token_ids

    @cached_property
    def hf(self) -> "PreTrainedModel":
        """The plain transformers model in evaluation mode, without gradients.

        Raises:
            ModelError: The weights cannot be used, or sdpa or flash attention is too far from eager attention.
        """
        from mechprobe.models.architectures import behaviour_of
        from mechprobe.models.attention import settle
        from mechprobe.models.precision import allow_tf32

        with loading(f"model {self.name}"):
            model = self._load(self.attention)
        with activity(f"trying the architecture of {self.name}"):
            settle(model, self.attention, self.name)
            behaviour_of(model)  # measured now, before hooks are on the model
        if self.tf32:
            allow_tf32(model)
        return model

    @property
    def behaviour(self) -> "Behaviour":
        """How the architecture runs; the weights are loaded where it is not known."""
        from mechprobe.models.architectures import behaviour_of, known_behaviour

        return known_behaviour(self.config) or behaviour_of(self.hf)

    def require_residual(self) -> None:
        """Raise `ModelError` where the architecture has no residual ``[batch pos d_model]`` after its blocks."""
        from mechprobe.models.architectures import refusal

        if self.behaviour.residual:
            raise ModelError(refusal(self.config, self.name, self.behaviour.residual))

    @cached_property
    def bridge(self) -> Any:
        """A TransformerBridge over its own copy of the weights.

        Raises:
            DependencyError: transformer-lens is not installed.
            ModelError: The bridge does not support the architecture.
        """
        require("transformer_lens", "TransformerBridge")
        from transformer_lens.model_bridge import TransformerBridge

        try:
            with loading(f"model {self.name} for TransformerBridge"):
                bridge = TransformerBridge.boot_transformers(
                    str(self.folder.root.path),
                    hf_model=self._load(),
                    tokenizer=self.tokenizer,
                    device=self.device,
                    dtype=self._torch_dtype,
                )
        except Exception as error:
            if is_out_of_memory(error) or isinstance(error, MechprobeError):
                raise
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

    def _load(self, attention: str = "eager") -> "PreTrainedModel":
        folder, device_map = self.folder, self.device_map
        if device_map is not None and folder.base is not None:
            folder = ModelFolder(Path(self._merged_folder.name))
        spread = isinstance(device_map, dict) and "disk" in device_map.values()
        model = load_weights(
            folder,
            role=self.name,
            dtype=self.dtype,
            attention={"flash": "flash_attention_2"}.get(attention, attention),
            device_map=device_map,
            offload_folder=self._offload_folder.name if spread else None,
            trust_remote_code=self.trust_remote_code,
        )
        if device_map is None:
            model.to(self.device)  # pyright: ignore[reportArgumentType]
        return model

    @cached_property
    def _offload_folder(self) -> "tempfile.TemporaryDirectory[str]":
        """Folder in which accelerate keeps modules that a device map places on disk; deleted with this object."""
        return tempfile.TemporaryDirectory(prefix="mechprobe_offload_")

    @cached_property
    def _merged_folder(self) -> "tempfile.TemporaryDirectory[str]":
        """Folder with the merged weights of an adapter, which a device map spreads; deleted with this object.

        An adapter cannot be merged into modules that a device map places on disk.
        """
        place = tempfile.TemporaryDirectory(prefix="mechprobe_merged_")
        whole = load_weights(self.folder, role=self.name, dtype=self.dtype, trust_remote_code=self.trust_remote_code)
        whole.save_pretrained(place.name)
        return place
