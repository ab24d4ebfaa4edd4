"""Checks of the installation: packages, device, bfloat16, TransformerBridge, disk, and the lab. Each one tries the real thing."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from mechprobe.doctor.check import Check, State
from mechprobe.errors import first_line
from mechprobe.progress import activity

_REQUIRED = (
    "torch", "transformers", "h5py", "numpy", "scipy", "pandas", "pyarrow", "safetensors", "pydantic", "typer", "rich",
    "jinja2", "einops", "jaxtyping",
)  # fmt: skip
_OPTIONAL = {
    "transformer-lens": "the comparison of the plain reader with TransformerBridge",
    "sae-lens": "SAE baselines and the export of slices",
    "matplotlib": "the figures of the report",
    "datasets": "prompts and tasks from datasets of the hub",
    "accelerate": "a device_map",
    "trl": "mechprobe posttrain and lab build (install mechprobe[posttrain])",
    "peft": "models that are adapters (install mechprobe[adapters])",
    "lm-eval": "mechprobe intervene --task (install mechprobe[evals])",
    "flash-attn": "attention = 'flash' on NVIDIA cards",
    "math-verify": "the scorer 'boxed' (install mechprobe[evals])",
}


def checks() -> list[Check]:
    """Run every check; the first failure is the one to fix first."""
    python = Check("python", "ok", ".".join(map(str, sys.version_info[:3])))
    device, packages = _tried("device", _device), _packages()
    has_lens = any(row.name == "transformer-lens" and row.state == "ok" for row in packages)
    bridge = [_tried("TransformerBridge", _bridge)] if has_lens else []
    return [python, *packages, device, _bf16(), *bridge, _attention(), _tried("disk", _disk), _lab()]


def _packages() -> list[Check]:
    rows = [_package(name, "fail", "not installed; install mechprobe again") for name in _REQUIRED]
    lens = next((row for row in rows if row.name == "transformer-lens" and row.state == "ok"), None)
    if lens is not None and int(lens.text.split(".")[0]) >= 4:
        rows.append(
            Check("transformer-lens < 4", "fail", f"sae-lens does not work with version {lens.text}; install version 3")
        )
    notes = {name: f"not installed; needed for {needed_for}" for name, needed_for in _OPTIONAL.items()}
    return rows + [_package(name, "note", text) for name, text in notes.items()]


def _package(name: str, state: State, missing: str) -> Check:
    try:
        return Check(name, "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Check(name, state, missing)


def _tried(name: str, attempt: Callable[[], str]) -> Check:
    try:
        with activity(f"trying {name}"):
            return Check(name, "ok", attempt())
    except Exception as error:  # noqa: BLE001 - a check reports every failure
        return Check(name, "fail", first_line(error))


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
        return f"cuda: {names} (use --device cuda)"
    return f"cpu, {torch.get_num_threads()} threads"


def _bf16() -> Check:
    """Try a bfloat16 product in another process, because on some machines it kills the process."""
    code = "import torch; a = torch.ones(64, 64, dtype=torch.bfloat16); print(float((a @ a).sum()))"
    try:
        with activity("trying bfloat16"):
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
            )
    except subprocess.TimeoutExpired:
        return Check("bfloat16 on the CPU", "fail", "a matrix product did not finish within two minutes")
    if done.returncode == 0:
        return Check("bfloat16 on the CPU", "ok", "matrix products work")
    fix = "use float32, or set ONEDNN_MAX_CPU_ISA before starting Python"
    return Check(
        "bfloat16 on the CPU", "note", f"a matrix product ended its process with code {done.returncode}; {fix}"
    )


def _bridge() -> str:
    from transformer_lens.model_bridge import TransformerBridge

    return f"{TransformerBridge.__module__} can be imported"


def _disk() -> str:
    with tempfile.TemporaryDirectory(dir=Path.cwd()):
        free = shutil.disk_usage(Path.cwd()).free
    return f"{free / 1e9:.1f} GB free; the current folder is writable"


def _attention() -> Check:
    """Measure kinds of attention on the base model of the embedded lab."""
    try:
        from mechprobe.doctor.attention import measured
        from mechprobe.lab.summary import shipped
        from mechprobe.models.load import LanguageModel

        device = "cuda" if _device().startswith("cuda") else "cpu"
        with activity("measuring attention"):
            return Check("attention", "ok", measured(LanguageModel("base", shipped() / "base", device=device)))
    except Exception as error:  # noqa: BLE001 - a check reports every failure
        return Check("attention", "note", first_line(error))


def _lab() -> Check:
    try:
        from mechprobe.lab.summary import shipped

        return Check("embedded lab", "ok", f"{shipped().name} is installed")
    except Exception as error:  # noqa: BLE001 - a check reports every failure
        return Check("embedded lab", "note", f"{error}")
