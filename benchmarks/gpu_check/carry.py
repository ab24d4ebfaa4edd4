"""Collects what travels to a GPU machine without network, and prints its size.

    python -m benchmarks.gpu_check.carry --wheels .wheels              # downloads the wheels of wheels.txt
    python -m benchmarks.gpu_check.carry --wheels .wheels --no-download

The exit code is 1 where wheels and working tree exceed `LIMIT_MIB`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
WHEELS = Path(__file__).with_name("wheels.txt")
LIMIT_MIB = 60
PLATFORMS = (
    "manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)  # fmt: skip


def download(folder: Path) -> None:
    """Download the wheels, whatever Python and processor this machine has."""
    platforms = [f"--platform={name}" for name in PLATFORMS]
    target = ["--python-version=3.12", "--implementation=cp", "--only-binary=:all:", *platforms]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *target]
    subprocess.run([*command, f"--dest={folder}", f"--requirement={WHEELS}"], check=True)


def tree_files() -> list[Path]:
    """The files of the working tree that git does not ignore."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    return [path for name in names if name and (path := ROOT / name).is_file()]


def missing(folder: Path) -> list[str]:
    """The lines of wheels.txt for which the folder has no wheel."""
    have = {"-".join(path.name.split("-")[:2]).lower().replace("_", "-") for path in folder.glob("*.whl")}
    lines = [line.strip() for line in WHEELS.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and line[0] != "#" and line.replace("==", "-").replace("_", "-") not in have]


def main(argv: Sequence[str] | None = None) -> int:
    """Download, and print the sizes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheels", type=Path, default=ROOT / ".wheels", help="folder of the wheels")
    parser.add_argument("--download", action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args(argv)
    if arguments.download:
        download(arguments.wheels)
    if lines := missing(arguments.wheels):
        print(f"{arguments.wheels} lacks {', '.join(lines)}", file=sys.stderr)
        return 1
    sizes = {
        "wheels": sum(path.stat().st_size for path in arguments.wheels.glob("*.whl")),
        "working tree": sum(path.stat().st_size for path in tree_files()),
    }
    sizes["together"] = sum(sizes.values())
    for name, size in sizes.items():
        print(f"{name:<13} {size / 2**20:6.1f} MiB")
    print(f"limit         {LIMIT_MIB:6.1f} MiB")
    return int(sizes["together"] > LIMIT_MIB * 2**20)


if __name__ == "__main__":
    sys.exit(main())
