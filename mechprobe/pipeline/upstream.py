"""Making the stages that a stage needs, as ``make`` does: missing ones are made, finished ones are reused."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from mechprobe.errors import ArtifactError, MechprobeError
from mechprobe.pipeline.run import Run
from mechprobe.progress import is_log
from mechprobe.ranks import processes
from mechprobe.run_config import SHARED, read_run_file, write_run_file
from mechprobe.run_layout import CHAIN
from mechprobe.stage_folder import MANIFEST, read_manifest, recorded_hash

_NEEDS = {
    "localize": (),
    "cache": ("localize",),
    "train-sae": ("cache",),
    "features": ("train-sae",),
    "baselines": ("train-sae",),
    "evaluate": (),
    "emergence": (),
    "drift": ("cache",),
    "dynamics": ("evaluate",),
    "logprobs": ("evaluate",),
    "weights": (),
    "probe": ("evaluate",),
    "sweep": (),
    "select": ("features", "evaluate"),
    "intervene": ("select",),
}
"""The stages that each stage reads. Their own needs come with them."""
_FOLDERS = {place.name: place.folder for place in CHAIN}


def missing_stages(run: Run, stage: str) -> list[str]:
    """The stages that have to be made before ``stage``, in order. A stage whose folder the user gave counts as made."""
    given = {name for name, _ in run.layout.elsewhere}
    found: list[str] = []
    needs = () if stage == "dynamics" and run.scores == run.layout.sweep else _NEEDS[stage]
    for need in needs:
        folder = _FOLDERS[need]
        made = folder in given or (getattr(run.layout, folder) / MANIFEST).is_file()
        if need == "localize" and (run.config.cache.sites or not run.config.tasks.file):
            continue  # the site is given, or no task can choose one
        if stage == "logprobs" and run.config.logprobs.traces.file:
            continue  # the traces are given
        if not made:
            found += [name for name in [*missing_stages(run, need), need] if name not in found]
    return found


def refuse_missing(run: Run, stage: str) -> None:
    """Raise `ArtifactError` where a stage that ``stage`` needs is missing."""
    missing = missing_stages(run, stage)
    if missing:
        raise ArtifactError(
            f"{run.folder} has no finished {missing[-1]} stage, which {stage} needs; run `mechprobe {missing[-1]} "
            f"--run {run.folder}` first, with the same options"
            + ("; several processes do not make it." if processes().count > 1 else ", or leave out --no-upstream.")
        )


def make_upstream(run: Run, stage: str, say: Callable[[str], None]) -> list[str]:
    """Make every missing stage that ``stage`` needs, and return their names.

    ``say`` receives a line before the work and one after each stage, a warning for each finished stage that was made from
    an earlier version of another, and one where the models now have another dtype than in the store.
    """
    missing = missing_stages(run, stage)
    for warning in [*_outdated(run, stage), *_other_dtype(run, stage)]:
        say(warning)
    if not missing:
        return []
    if run.config.tasks.file and run.config.prompts.file:
        run.check()
    say(f"{stage} needs {', '.join(missing)} in {run.folder}; making {'it' if len(missing) == 1 else 'them'} first.")
    upstream = Run(run.config, run.layout, trust_remote_code=run.trust_remote_code)
    upstream._family = run._family
    stages = dict(upstream.stages())
    for name in missing:
        timed(name, stages[name], say)
    run._family = upstream._family
    return missing


def _all_needs(stage: str) -> set[str]:
    return {name for need in _NEEDS[stage] for name in (need, *_all_needs(need))}


def _outdated(run: Run, stage: str) -> list[str]:
    """A warning for each finished upstream stage whose inputs were made again after it."""
    upstream, found = _all_needs(stage), []
    for name in [place.name for place in CHAIN if place.name in upstream]:
        folder = getattr(run.layout, _FOLDERS[name])
        if not (folder / MANIFEST).is_file():
            continue
        for source, made_from in read_manifest(folder)["inputs"].items():
            read = getattr(run.layout, source) if source in _FOLDERS.values() else None
            if read is not None and (read / MANIFEST).is_file() and recorded_hash(read_manifest(read)) != made_from:
                found.append(
                    f"warning: {folder} was made from another {source} than {read} holds now; "
                    f"`mechprobe {name} --run {run.folder} --force` makes it again."
                )
    return found


def _other_dtype(run: Run, stage: str) -> list[str]:
    """A warning where a stage reads the residuals of models in another dtype than the store, from which features were trained."""
    if stage not in ("features", "select", "intervene") or not run.config.models:
        return []
    if not (run.layout.cache / MANIFEST).is_file():
        return []
    stored = read_manifest(run.layout.cache)["config"].get("model_dtypes") or {}
    found = {name: (dtype, run.family[name].dtype) for name, dtype in stored.items() if name in run.family}
    apart = [name for name, (then, now) in found.items() if then != now]
    if not apart:
        return []
    then, now = found[apart[0]]
    return [
        f"warning: the dictionary was trained on {', '.join(apart)} in {then}, and {stage} runs them in {now}; "
        f'dtype="{then}" gives the residuals that the features know.'
    ]


def timed(name: str, stage: Callable[[], object], say: Callable[[str], None]) -> None:
    """Run a stage and say how long it took."""
    started = time.monotonic()
    stage()
    say(f"{name:<10} {time.monotonic() - started:6.1f} s")


@contextmanager
def settings_kept(run: Run) -> Iterator[list[str]]:
    """Keep the settings of a run folder: all of them when it is new, then those of the stages that were made.

    A new folder has them from the beginning, so that a later command resumes with them. A refused command takes them
    away again unless a stage was begun.

    Yields:
        A list for the names of the stages that were made.
    """
    require_run_folder(run)
    path, made = run.layout.run_file, []
    new = not path.is_file()
    if new:
        run.save_config()
    try:
        yield made
    except MechprobeError:
        if new and not made and not any((run.folder / name).is_dir() for name in _FOLDERS.values()):
            path.unlink()
            with suppress(OSError):  # it may hold the log of the command
                run.folder.rmdir()
        raise
    kept, given = read_run_file(run.folder), run.config.given
    changed = dict(kept)
    for section in [part for stage in made for part in _SECTIONS.get(stage, (stage.replace("-", "_"),))]:
        kind = type(getattr(run.config, section))
        shared = {key: given[key] for key in SHARED if key in given and given[key] != kept.get(key)}
        own = {key: value for key, value in shared.items() if key in kind.model_fields} | given.get(section, {})
        if section == "tasks" and "seed" in shared and not run.config.tasks.sampling.greedy:
            own = {**own, "sampling": run.config.tasks.sampling.model_dump(mode="json", exclude_defaults=True)}
        if own:
            changed[section] = own
    if changed != kept:
        write_run_file(run.folder, changed)


_SECTIONS = {
    "localize": ("localize", "tasks"),
    "cache": ("cache", "prompts"),
    "features": ("features", "nulls"),
    "evaluate": ("evaluate", "tasks"),
}
"""Sections of the configuration that a stage reads, where they are not the one named as the stage."""


def require_run_folder(run: Run) -> None:
    """Raise `ArtifactError` if the run folder holds other files but no stage of a run."""
    if not run.folder.is_dir():
        return
    known = {
        run.layout.run_file.name,
        *_FOLDERS.values(),
        "checkpoints",
        "emergence",
        "drift",
        "dynamics",
        "logprobs",
        "weights",
        "probe",
        "sweep",
        "benchmarks",
        "baselines",
        "nulls",
    }
    found = {path.name for path in run.folder.iterdir() if not is_log(path)}
    if found and not found & known:
        raise ArtifactError(f"{run.folder} is not empty and is not a run folder; give another --run.")
