"""Making the stages that a stage needs, as ``make`` does: missing ones are made, finished ones are reused."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mechprobe.errors import ArtifactError, MechprobeError
from mechprobe.files import write_json
from mechprobe.pipeline.run import Run
from mechprobe.run_config import read_run_file
from mechprobe.run_layout import CHAIN
from mechprobe.stage_folder import MANIFEST

_NEEDS = {
    "localize": (),
    "cache": ("localize",),
    "train-sae": ("cache",),
    "features": ("train-sae",),
    "baselines": ("train-sae",),
    "evaluate": (),
    "emergence": (),
    "select": ("features", "evaluate"),
    "intervene": ("select",),
}
"""The stages that each stage reads. Their own needs come with them."""
_FOLDERS = {place.name: place.folder for place in CHAIN}


def missing_stages(run: Run, stage: str) -> list[str]:
    """The stages that have to be made before ``stage``, in order. A stage whose folder the user gave counts as made."""
    given = {name for name, _ in run.layout.elsewhere}
    found: list[str] = []
    for need in _NEEDS[stage]:
        folder = _FOLDERS[need]
        made = folder in given or (getattr(run.layout, folder) / MANIFEST).is_file()
        if need == "localize" and (run.config.cache.sites or not run.config.tasks.file):
            continue  # the site is given, or no task can choose one
        if not made:
            found += [name for name in [*missing_stages(run, need), need] if name not in found]
    return found


def refuse_missing(run: Run, stage: str) -> None:
    """Raise `ArtifactError` where a stage that ``stage`` needs is missing."""
    missing = missing_stages(run, stage)
    if missing:
        raise ArtifactError(
            f"{run.folder} has no finished {missing[-1]} stage, which {stage} needs; "
            f"run `mechprobe {missing[-1]} --run {run.folder}` first, or leave out --no-upstream."
        )


def make_upstream(run: Run, stage: str, say: Callable[[str], None]) -> None:
    """Make every missing stage that ``stage`` needs; ``say`` receives a line before the work and one after each stage."""
    missing = missing_stages(run, stage)
    if not missing:
        return
    say(f"{stage} needs {', '.join(missing)} in {run.folder}; making {'it' if len(missing) == 1 else 'them'} first.")
    upstream = Run(run.config, run.layout, trust_remote_code=run.trust_remote_code)
    upstream._family = run._family
    stages = dict(upstream.stages())
    for name in missing:
        timed(name, stages[name], say)
    run._family = upstream._family


def timed(name: str, stage: Callable[[], object], say: Callable[[str], None]) -> None:
    """Run a stage and say how long it took."""
    started = time.monotonic()
    stage()
    say(f"{name:<10} {time.monotonic() - started:6.1f} s")


@contextmanager
def settings_kept(run: Run, stage: str) -> Iterator[None]:
    """Keep the settings of a run folder: all of them when it is new, then those of each stage that was made.

    A new folder has them from the beginning, so that a later command resumes with them. A refused command that wrote nothing else
    leaves no run folder behind.
    """
    require_run_folder(run)
    path, section = run.layout.run_file, stage.replace("-", "_")
    new = not path.is_file()
    if new:
        run.save_config()
    try:
        yield
    except MechprobeError:
        if new and [found.name for found in run.folder.iterdir()] == [path.name]:
            path.unlink()
            run.folder.rmdir()
        raise
    given = run.config.given.get(section)
    kept = read_run_file(run.folder)
    if given and kept.get(section) != given:
        write_json(path, {**kept, section: given})


def require_run_folder(run: Run) -> None:
    """Raise `ArtifactError` if the run folder holds other files but no stage of a run."""
    if not run.folder.is_dir():
        return
    known = {run.layout.run_file.name, *_FOLDERS.values(), "checkpoints", "emergence", "baselines", "nulls"}
    found = {path.name for path in run.folder.iterdir()}
    if found and not found & known:
        raise ArtifactError(f"{run.folder} is not empty and is not a run folder; give another --run.")
