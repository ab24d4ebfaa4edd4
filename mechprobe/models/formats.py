"""Model folders and files of other programs, recognised by their file names and answered with what makes them loadable."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

_GGUF_MAGIC = b"GGUF"
_LFS_MAGIC = b"version https://git-lfs"


class Foreign(NamedTuple):
    """What was found, as the end of "PATH …", and how to make it loadable."""

    what: str
    mend: str


def foreign_file(path: Path) -> Foreign:
    """What a path that is a file, not a folder, holds."""
    if _starts_with(path, _GGUF_MAGIC):
        return Foreign(
            "is a GGUF file, which holds quantized weights of llama.cpp",
            "give the folder of the model that it was converted from",
        )
    if path.suffix in (".nemo", ".ckpt"):
        return Foreign(
            f"is a {path.suffix} archive of a trainer", "convert it with the trainer to a Hugging Face folder"
        )
    return Foreign("is a file", "give the folder that holds it together with config.json and the tokenizer")


def is_lfs_pointer(file: Path) -> bool:
    """Whether a file is the pointer that git leaves in place of a large file that was not fetched."""
    return _starts_with(file, _LFS_MAGIC)


def foreign_folder(folder: Path) -> Foreign | None:
    """What a folder without loadable weights holds; None if nothing is recognised."""
    return next((found for recognise in _RECOGNISERS if (found := recognise(folder)) is not None), None)


def model_folders_below(folder: Path) -> list[Path]:
    """Folders at most two levels below that look like models or adapters, the last one by number first."""
    marks = ("config.json", "adapter_config.json")
    weights = ("*.safetensors", "*.bin", "*.pt", "*.index.json")
    found = {file.parent for mark in marks for depth in ("*", "*/*") for file in folder.glob(f"{depth}/{mark}")}
    usable = [place for place in found if any(match for pattern in weights for match in place.glob(pattern))]
    return sorted(usable, key=lambda place: ([int(part) for part in re.findall(r"\d+", str(place))], str(place)))[::-1]


def _starts_with(file: Path, magic: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(magic)) == magic


def _verl(folder: Path) -> Foreign | None:
    """Shards of verl's FSDP engine, in the folder, in its actor, or beside the ``huggingface`` folder that verl writes."""
    places = [folder, folder / "actor", *([folder.parent] if folder.name == "huggingface" else [])]
    place = _first_with(places, "model_world_size_*_rank_*.pt")
    if place is None:
        return None
    source, target = _quoted(place)
    return Foreign(
        "holds the shards of an FSDP trainer (verl), not one model",
        f"merge them with `python -m verl.model_merger merge --backend fsdp --local_dir {source} --target_dir {target}` "
        f"and give {target}",
    )


def _megatron(folder: Path) -> Foreign | None:
    marks = ("latest_checkpointed_iteration.txt", "*mp_rank_*/model_optim_rng.pt", "*mp_rank_*/distrib_optim.pt")
    distributed = _first_with([folder, folder / "dist_ckpt"], "*.distcp")
    by_megatron = distributed is not None and (distributed / "common.pt").is_file()
    if not by_megatron and not any(_has(folder, f"{below}{mark}") for mark in marks for below in ("", "iter_*/")):
        return None
    source, target = _quoted(folder)
    return Foreign(
        "holds a Megatron checkpoint",
        f"convert it to a Hugging Face folder with Megatron-Bridge (AutoBridge.export_ckpt), or, if verl wrote it, with "
        f"`python -m verl.model_merger merge --backend megatron --local_dir {source} --target_dir {target}`",
    )


def _distributed(folder: Path) -> Foreign | None:
    place = _first_with([folder, *_subfolders(folder)], "*.distcp")
    if place is None:
        return None
    source, target = _quoted(place)[0], _quoted(folder)[1]
    return Foreign(
        "holds a checkpoint of torch.distributed.checkpoint, whose shards are not one model",
        f"merge it with `accelerate merge-weights {source} {target}`, copy config.json and the tokenizer there, and "
        f"give {target}",
    )


def _deepspeed(folder: Path) -> Foreign | None:
    inside = _has(folder, "*model_states.pt")  # the folder of one step was given
    root = folder.parent if inside else folder
    if not (inside or (root / "zero_to_fp32.py").is_file() or _has(root, "*/*model_states.pt")):
        return None
    source, target = _quoted(root)
    script = root / "zero_to_fp32.py"
    whose = "" if script.is_file() else " (a file of deepspeed.utils)"
    return Foreign(
        "holds the shards of DeepSpeed ZeRO, not one model",
        f"merge them with `python {shlex.quote(str(script)) if not whose else 'zero_to_fp32.py'} {source} {target} "
        f"--safe_serialization`{whose}, copy config.json and the tokenizer there, and give {target}",
    )


def _quoted(folder: Path) -> tuple[str, str]:
    """A folder, and the one beside it that takes the merged model, as a shell reads them."""
    return shlex.quote(str(folder)), shlex.quote(f"{folder}-merged")


def _by_files(*patterns: str, what: str, mend: str) -> Callable[[Path], Foreign | None]:
    def recognise(folder: Path) -> Foreign | None:
        return Foreign(what, mend) if any(_has(folder, pattern) for pattern in patterns) else None

    return recognise


def _has(folder: Path, pattern: str) -> bool:
    return any(True for _ in folder.glob(pattern))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir())


def _first_with(folders: list[Path], pattern: str) -> Path | None:
    return next((folder for folder in folders if _has(folder, pattern)), None)


_RECOGNISERS: tuple[Callable[[Path], Foreign | None], ...] = (
    _verl,
    _megatron,
    _distributed,
    _deepspeed,
    _by_files(
        "*.gguf",
        what="holds GGUF files, which hold quantized weights of llama.cpp",
        mend="give the folder of the model that they were converted from",
    ),
    _by_files(
        "consolidated*.pth", "consolidated*.safetensors",
        what="holds weights in the format of their publisher, not of transformers",
        mend="take the folder in the Hugging Face format, or convert it with the conversion script of transformers",
    ),
    _by_files(
        "*.nemo", "model_weights/*",
        what="holds a NeMo checkpoint", mend="convert it to a Hugging Face folder with NeMo (llm.export_ckpt)",
    ),
    _by_files(
        "tf_model*.h5", "flax_model*.msgpack", "*.onnx", "rust_model.ot",
        what="holds weights of TensorFlow, Flax, ONNX or Rust only, which transformers does not load",
        mend="take a folder with model.safetensors",
    ),
    _by_files(
        "optimizer.pt", "trainer_state.json",
        what="holds the state of a trainer but no weights",
        mend="save the model there with trainer.save_model, or take another checkpoint",
    ),
)  # fmt: skip
