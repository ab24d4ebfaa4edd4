"""The table of commands."""

import os
from collections.abc import Sequence

# Set before any command imports torch. Without the first, bf16 products die with SIGILL on machines that announce an AMX
# unit they lack. Without the second, spinning OpenMP threads make a busy machine six times slower.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import typer

from mechprobe.cli import (
    baselines,
    cache,
    crosscoder,
    doctor,
    drift,
    dynamics,
    emergence,
    evaluate,
    features,
    intervene,
    lab,
    localize,
    logprobs,
    plan,
    plan_samples,
    posttrain,
    probe,
    run,
    select,
    show,
    skills,
    store,
    sweep,
    train_sae,
    weights,
)
from mechprobe.cli.long_running import long_running, long_running_without_models

_MULTIPLE = ("--models", "-m", "--set", "-s", "--sae")

app = typer.Typer(
    name="mechprobe",
    help="Find what post-training changed inside a model: record, train one dictionary, select features, test them by edits.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
_STAGES, _TOOLS = "Stages of a run, in order", "Around a run"
_COMMANDS = {
    _STAGES: {
        "run": run.run,
        "localize": localize.localize,
        "cache": cache.cache,
        "train-sae": train_sae.train_sae,
        "features": features.features,
        "evaluate": evaluate.evaluate,
        "select": select.select,
        "intervene": intervene.intervene,
        "report": show.report,
    },
    _TOOLS: {
        "show": show.show,
        "emergence": emergence.emergence,
        "sweep": sweep.sweep,
        "drift": drift.drift,
        "dynamics": dynamics.dynamics,
        "logprobs": logprobs.logprobs,
        "probe": probe.probe,
        "baselines": baselines.baselines,
        "weights": weights.weights,
        "plan": plan.plan,
        "bench": plan.bench,
        "plan-samples": plan_samples.plan_samples,
        "doctor": doctor.doctor,
    },
}
_SHORT = {"show", "plan-samples"}
_WITHOUT_MODELS = {"report"}
for panel, commands in _COMMANDS.items():
    for name, command in commands.items():
        if name not in _SHORT:
            command = (long_running_without_models if name in _WITHOUT_MODELS else long_running)(command)
        app.command(name, rich_help_panel=panel)(command)
for name, group in {
    "lab": lab.app,
    "posttrain": posttrain.app,
    "skills": skills.app,
    "store": store.app,
    "crosscoder": crosscoder.app,
}.items():
    app.add_typer(group, name=name, rich_help_panel=_TOOLS)


def spread(argv: Sequence[str]) -> list[str]:
    """Repeat an option for each of its values: ``--models a=x b=y`` becomes ``--models a=x --models b=y``.

    Example:
        >>> spread(["cache", "--models", "base=a", "rl=b", "--out", "o"])
        ['cache', '--models', 'base=a', '--models', 'rl=b', '--out', 'o']
    """
    result: list[str] = []
    option: str | None = None
    for index, word in enumerate(argv):
        if word.startswith("-"):
            option = word if word in _MULTIPLE else None
        elif option is not None and argv[index - 1] != option and "=" in word:
            result.append(option)
        elif option is not None and argv[index - 1] != option:
            option = None
        result.append(word)
    return result
