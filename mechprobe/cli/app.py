"""The table of commands, and how a command ends: an error is one sentence on stderr and exit code 2."""

import os
import sys
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

INTERRUPTED = 130
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 2 an error that the user can fix, 130 interrupted."""
    from mechprobe.errors import EndedElsewhereError
    from mechprobe.launcher import expect_end
    from mechprobe.memory import forget_limits
    from mechprobe.progress import forget_told
    from sae_training.errors import UserError

    expect_end()
    forget_told()
    forget_limits()
    arguments = spread(list(sys.argv[1:] if argv is None else argv))
    try:
        code = app(arguments, standalone_mode=False)
    except EndedElsewhereError as error:
        return error.exit_code
    except UserError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        return _fail(sentence)
    if code == INTERRUPTED:  # typer turns Ctrl-C into this exit code
        return _interrupted()
    return code if isinstance(code, int) else 0


def _sentence(error: Exception) -> str | None:
    """The message for an error that the user can fix; None for a defect of mechprobe."""
    if type(error).__name__ == "NoArgsIsHelpError":
        return "no command was given; see `mechprobe --help`."
    usage = getattr(error, "format_message", None)
    if usage is not None:
        context = getattr(error, "ctx", None)
        command = getattr(context, "command_path", None) or "mechprobe"
        return f"{usage().rstrip('.')}; see `{command} --help`."
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if _ran_out_of_memory(error):
        return f"memory ran out ({error or type(error).__name__}); free memory, or lower the batch size or the dtype of the models."
    return None


def _ran_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; without torch only Python itself can say so."""
    from mechprobe.memory import is_out_of_memory

    return isinstance(error, MemoryError) or ("torch" in sys.modules and is_out_of_memory(error))


def _fail(sentence: str) -> int:
    from mechprobe.launcher import speaks

    if speaks():
        sys.stderr.write(f"mechprobe: {' '.join(sentence.split())}\n")
    return 2


def _interrupted() -> int:
    if os.environ.get("RANK", "0") == "0":  # Ctrl-C reaches all processes of a launcher
        sys.stderr.write("mechprobe: interrupted; run the same command again to resume.\n")
    return INTERRUPTED
