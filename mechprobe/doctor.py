"""Checks of the installation: packages, device, bfloat16, TransformerBridge, disk, and the lab. Each one tries the real thing."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from mechprobe.errors import first_line


@dataclass(frozen=True)
class Check:
    """One line of ``mechprobe doctor``.

    Attributes:
        name: What was checked.
        state: ``fail`` prevents work, ``note`` limits it.
        text: The result, and how to fix a failure.
    """

    name: str
    state: Literal["ok", "note", "fail"]
    text: str


_REQUIRED = (
    "torch", "transformers", "transformer-lens", "sae-lens", "h5py", "numpy", "scipy", "pandas", "pyarrow", "matplotlib",
    "safetensors", "pydantic", "typer", "rich", "jinja2", "einops", "jaxtyping",
)  # fmt: skip
_OPTIONAL = {"trl": "mechprobe lab build (install mechprobe[posttrain])"}


def checks() -> list[Check]:
    """Run every check; the first failure is the one to fix first."""
    return [_python(), *_packages(), _device(), _bf16(), _bridge(), _disk(), _lab()]


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", "ok", version)


def _packages() -> list[Check]:
    rows = []
    for name in _REQUIRED:
        try:
            rows.append(Check(name, "ok", metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append(Check(name, "fail", "not installed; install mechprobe again"))
    lens = next((row for row in rows if row.name == "transformer-lens" and row.state == "ok"), None)
    if lens is not None and int(lens.text.split(".")[0]) >= 4:
        rows.append(
            Check("transformer-lens < 4", "fail", f"sae-lens does not work with version {lens.text}; install version 3")
        )
    for name, needed_for in _OPTIONAL.items():
        try:
            rows.append(Check(name, "ok", metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append(Check(name, "note", f"not installed; needed for {needed_for}"))
    return rows


def _tried(name: str, attempt: Callable[[], str]) -> Check:
    try:
        return Check(name, "ok", attempt())
    except Exception as error:  # noqa: BLE001 - a check reports every failure
        return Check(name, "fail", first_line(error))


def _device() -> Check:
    def attempt() -> str:
        import torch

        if torch.cuda.is_available():
            names = ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
            return f"cuda: {names} (use --device cuda)"
        return f"cpu, {torch.get_num_threads()} threads"

    return _tried("device", attempt)


def _bf16() -> Check:
    """Try a bfloat16 product in another process, because on some machines it kills the process."""
    code = "import torch; a = torch.ones(64, 64, dtype=torch.bfloat16); print(float((a @ a).sum()))"
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    except subprocess.TimeoutExpired:
        return Check("bfloat16 on the CPU", "fail", "a matrix product did not finish within two minutes")
    if done.returncode == 0:
        return Check("bfloat16 on the CPU", "ok", "matrix products work")
    return Check(
        "bfloat16 on the CPU",
        "note",
        f"a matrix product ended its process with code {done.returncode}; use float32, or set ONEDNN_MAX_CPU_ISA before starting Python",
    )


def _bridge() -> Check:
    def attempt() -> str:
        from transformer_lens.model_bridge import TransformerBridge

        return f"{TransformerBridge.__module__} can be imported"

    return _tried("TransformerBridge", attempt)


def _disk() -> Check:
    import shutil

    def attempt() -> str:
        with tempfile.TemporaryDirectory(dir=Path.cwd()):
            free = shutil.disk_usage(Path.cwd()).free
        return f"{free / 1e9:.1f} GB free; the current folder is writable"

    return _tried("disk", attempt)


def _lab() -> Check:
    try:
        from mechprobe.lab.summary import shipped

        return Check("embedded lab", "ok", f"{shipped().name} is installed")
    except Exception as error:  # noqa: BLE001 - a check reports every failure
        return Check("embedded lab", "note", f"{error}")
