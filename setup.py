"""Build step of the wheel: it carries the labs shared-marker and mechanisms. pyproject.toml holds everything else.

The labs are committed once, under artifacts/lab. A wheel gets copies without the checkpoints of the training;
an editable install reads the committed files.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
LABS = Path("artifacts", "lab")
LAB_PARTS = ("run.toml", "tasks.jsonl", "prompts.jsonl", "manifest.json", "base", "sft", "rl")
PARTS = {"shared-marker": LAB_PARTS, "mechanisms": (*LAB_PARTS, "null.toml", "null")}


class BuildWithLabs(build_py):
    """Copies the packages, then the labs into mechprobe/lab/shipped."""

    def run(self) -> None:
        """Fill the build folder."""
        super().run()
        if self.editable_mode:
            return
        for source, target in self._lab_files():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """List every file that `run` writes."""
        outputs = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else [*outputs, *(str(target) for _, target in self._lab_files())]

    def _lab_files(self) -> list[tuple[Path, Path]]:
        """Pairs of a committed file of a lab and its place in the build folder."""
        target = Path(self.build_lib, "mechprobe", "lab", "shipped")
        pairs = []
        for lab, part in ((lab, part) for lab, parts in PARTS.items() for part in parts):
            place = ROOT / LABS / lab / part
            if not place.exists():
                raise FileNotFoundError(
                    f"{LABS / lab / part} is missing, so the wheel cannot carry the lab; restore it from git."
                )
            files = sorted(place.iterdir()) if place.is_dir() else [place]
            pairs += [(file, target / file.relative_to(ROOT / LABS)) for file in files]
        return pairs


setup(cmdclass={"build_py": BuildWithLabs})
