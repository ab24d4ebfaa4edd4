"""``mechprobe posttrain``: train an arm from a base, SFT or GRPO."""

import math
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mechprobe.cli.long_running import long_running

if TYPE_CHECKING:
    from mechprobe.planning.stage_cost import StageCost
    from mechprobe.posttrain.arm import Arm
    from mechprobe.posttrain.config import PosttrainConfig
    from mechprobe.posttrain.result import KlMatch, PosttrainResult

app = typer.Typer(no_args_is_help=True, help="Post-train a base with checkpoints: SFT or GRPO, on the same prompts.")

Base = Annotated[str | None, typer.Option("--base", "-b", metavar="PATH", help="Base model: folder or hub name.")]
Prompts = Annotated[
    str | None,
    typer.Option(
        "--prompts", "-p", metavar="FILE", help="Prompts with answers (GRPO) and responses (SFT), one a line."
    ),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Folder of all arms; this one is written to OUT/ARM/ and OUT/ARM/step_<n>/.")
]
Name = Annotated[
    str | None, typer.Option("--arm", help="Name of the arm: sft, sft-onpolicy, sft-matched or rl by default.")
]
Config = Annotated[
    Path | None, typer.Option("--config", "-c", help="Settings of both arms (TOML), with a table for each.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override one setting. May be repeated.")
]
ScorerSpec = Annotated[
    str | None,
    typer.Option(
        "--scorer",
        help="What judges responses: exact, numeric, letter, yes_no, refusal, boxed, skill, final:<MARKER> or "
        "python:<MODULE>:<FUNCTION>.",
    ),
]
Checkpoints = Annotated[
    str | None,
    typer.Option(
        "--checkpoints",
        metavar="STEPS",
        help="Steps to keep besides the last, such as 5,50,500. The default is 10, then twice the step before.",
    ),
]
Lora = Annotated[int | None, typer.Option("--lora", metavar="RANK", help="Train adapters of this rank (peft).")]
Freeze = Annotated[
    list[str] | None,
    typer.Option("--freeze", metavar="PATTERN", help="Parameters to keep fixed, such as 'lm_head.*'. May be repeated."),
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of adapters, dropout and sampling.")]
Device = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done and its cost. Write nothing.")]
Force = Annotated[bool, typer.Option("--force", help="Empty the folder of the arm and start again.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let the folder of the base run its own code.")]


@app.command()
@long_running
def sft(
    out: Out,
    base: Base = None,
    prompts: Prompts = None,
    arm: Name = None,
    on_policy: Annotated[
        int | None,
        typer.Option(
            "--on-policy",
            metavar="N",
            help="Train on right ones of N samples of the base for each prompt; a number from python: is right from 1 on.",
        ),
    ] = None,
    match_kl: Annotated[
        str | None, typer.Option("--match-kl", metavar="RUN", help="Stop at the divergence from base of this arm.")
    ] = None,
    config: Config = None,
    set_: Set = None,
    scorer: ScorerSpec = None,
    checkpoints: Checkpoints = None,
    lora: Lora = None,
    freeze: Freeze = None,
    seed: Seed = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    dry_run: DryRun = False,
    force: Force = False,
    trust_remote_code: Trust = False,
) -> None:
    """Supervised fine-tuning on the responses of the file, or on right samples of the base."""
    from mechprobe.posttrain.config import SftConfig

    extra = _extra(prompts, scorer, checkpoints, lora, freeze, seed)
    extra |= {} if on_policy is None else {"on_policy": {"n": on_policy}}
    extra |= {} if match_kl is None else {"match_kl": {"run": match_kl}}
    _run(SftConfig, base, out, config, set_, extra, arm, device, (as_json, dry_run, force, trust_remote_code))


@app.command()
@long_running
def grpo(
    out: Out,
    base: Base = None,
    prompts: Prompts = None,
    arm: Name = None,
    config: Config = None,
    set_: Set = None,
    scorer: ScorerSpec = None,
    checkpoints: Checkpoints = None,
    lora: Lora = None,
    freeze: Freeze = None,
    seed: Seed = None,
    device: Device = "cpu",
    as_json: AsJson = False,
    dry_run: DryRun = False,
    force: Force = False,
    trust_remote_code: Trust = False,
) -> None:
    """GRPO with a verifiable reward: 1 for a response that the scorer calls right, or the number that python: returns."""
    from mechprobe.posttrain.config import GrpoConfig

    extra = _extra(prompts, scorer, checkpoints, lora, freeze, seed)
    _run(GrpoConfig, base, out, config, set_, extra, arm, device, (as_json, dry_run, force, trust_remote_code))


def _extra(
    prompts: str | None,
    scorer: str | None,
    checkpoints: str | None,
    lora: int | None,
    freeze: list[str] | None,
    seed: int | None,
) -> dict[str, Any]:
    """Settings given by options of both commands."""
    from mechprobe.errors import ConfigError

    steps = None
    if checkpoints is not None:
        parts = [part.strip() for part in checkpoints.split(",") if part.strip()]
        if not all(part.isdecimal() for part in parts):
            raise ConfigError(f"--checkpoints '{checkpoints}' is malformed; write steps with commas, such as 10,20,40.")
        steps = [int(part) for part in parts]
    given = {
        "prompts": None if prompts is None else {"file": prompts},
        "scorer": scorer,
        "checkpoints": steps,
        "lora": None if lora is None else {"rank": lora, "alpha": 2 * lora},
        "freeze": freeze or None,
        "seed": seed,
    }
    return {name: value for name, value in given.items() if value is not None}


def _run(
    kind: "type[PosttrainConfig]",
    base: str | None,
    out: Path,
    config: Path | None,
    overrides: list[str] | None,
    extra: dict[str, Any],
    arm: str | None,
    device: str,
    flags: tuple[bool, bool, bool, bool],
) -> None:
    from mechprobe.cli.printing import say, say_json
    from mechprobe.errors import ConfigError
    from mechprobe.posttrain.arm import STAGE
    from mechprobe.posttrain.config import read_settings
    from mechprobe.posttrain.stage import plan, train
    from mechprobe.posttrain.training import n_processes
    from mechprobe.stage_folder import Stage

    as_json, dry_run, force, trust = flags
    named, settings = read_settings(kind, config, overrides or (), extra)
    if base is None and named is None:
        raise ConfigError('No base is given; give --base PATH, or base = "..." in the file of --config.')
    found = plan(base or named or "", None, out, settings, arm=arm, device=device, trust=trust)
    if dry_run:
        Stage.check(found.folder, force=force, remake="refused", name=STAGE, config=found.identity, models=found.models)
        planned = plan_of(found)
        cost, lines = cost_of(found, planned)
        planned["cost"] = [cost.to_dict()]
        say_json(planned) if as_json else say("\n".join([*plan_lines(found, planned), *lines, "Nothing was written."]))
        return
    result = train(found, force=force)
    if n_processes()[0]:
        return
    if as_json:
        say_json({"folder": str(found.folder), "models": result.models(found.folder), **result.to_dict()})
        return
    for line in [*result_lines(result), *closing_lines(result, found)]:
        say(line)


def plan_of(arm: "Arm") -> dict[str, Any]:
    """What a training would do, as JSON."""
    from mechprobe.posttrain.weights import parameter_names, stored_dtype, trained_sizes

    config, n_steps = arm.config, arm.n_steps
    n_all = sum(parameter_names(arm.base).values())
    longest = max(len(item.prompt_ids) + (len(item.response_ids) or config.max_new_tokens) for item in arm.examples)
    width = stored_dtype(arm.base).itemsize
    return {
        "arm": arm.name,
        "method": arm.method,
        "folder": str(arm.folder),
        "prompts": arm.seen.to_dict(),
        "steps": n_steps,
        "responses_per_step": config.responses_per_step,
        "checkpoints": list(config.kept(n_steps)),
        "parameters": n_all,
        "trained": sum(trained_sizes(arm.base, config).values()),
        "longest_sequence": longest,
        "saved_bytes": None if config.lora else n_all * width * (1 + len(config.kept(n_steps))),
        "state_bytes": None if config.lora else n_all * 4 * 3 * 2,
        "flops": 6 * n_all * longest * config.responses_per_step * n_steps,
    }


def cost_of(arm: "Arm", planned: dict[str, Any]) -> "tuple[StageCost, list[str]]":
    """FLOP, memory, disk and time of a training on this machine, also as lines."""
    from statistics import fmean

    from mechprobe.planning.machine import rates_here
    from mechprobe.planning.posttraining import TrainingWork, training_cost
    from mechprobe.planning.shapes import ModelShape
    from mechprobe.planning.stage_cost import table
    from mechprobe.posttrain.training import micro_batches

    config, own = arm.config, getattr(arm.config, "on_policy", None)
    written = arm.method == "grpo" or own is not None
    rates, known, said = rates_here(arm.base.device)
    work = TrainingWork(
        method=arm.method,
        steps=arm.n_steps,
        responses=config.responses_per_step,
        micro=micro_batches(config, arm.processes)[0],
        prompt=fmean(len(item.prompt_ids) for item in arm.examples),
        response=config.max_new_tokens if written else fmean(len(item.response_ids) for item in arm.examples),
        sampled=0 if own is None else own.n * len(arm.examples),
        trained=planned["trained"],
        saved=1 + len(planned["checkpoints"]),
        states=-(-arm.n_steps // config.state_every),  # the last step writes one, too
        again=config.gradient_checkpointing,
        adapters=config.lora is not None,
    )
    cost = training_cost(ModelShape.of(arm.base.config), work, rates, known=known)
    return cost, [*table([cost], rates), *said]


def plan_lines(arm: "Arm", planned: dict[str, Any]) -> list[str]:
    """What a training would do, as text."""
    seen = arm.seen
    lora = arm.config.lora
    trained = f"{planned['trained']:,} parameters " + (f"in adapters of rank {lora.rank}, beside" if lora else "of")
    steps = ", ".join(map(str, planned["checkpoints"]))
    size = "" if lora else f", {planned['saved_bytes'] / 1e6:,.0f} MB"
    return [
        f"{arm.method.upper()} of {arm.base.path}, arm '{arm.name}' in {arm.folder}",
        f"prompts      {seen.n:,} from {seen.file} (sha256 {seen.sha256[:16]}, order {seen.order_sha256[:16]})",
        f"steps        {planned['steps']:,} of {seen.per_step} prompts, {planned['responses_per_step']:,} responses each",
        f"trained      {trained} {planned['parameters']:,} of the base, seed {arm.config.seed}",
        f"models kept  {len(planned['checkpoints']) + 1} ({f'steps {steps} and ' if steps else ''}the last){size}",
        f"cost         at most {planned['flops']:.1e} floating-point operations (6 × parameters × tokens), "
        f"longest sequence {planned['longest_sequence']} tokens",
    ]


def result_lines(result: "PosttrainResult") -> list[str]:
    """The main numbers of an arm."""
    seen = result.prompts
    lines = [
        f"{result.method.upper()}, arm '{result.arm}': {result.steps} steps, {result.n_trained:,} of {result.n_parameters:,} "
        "parameters trained",
        f"prompts  {seen.n:,} from {seen.file}, {seen.visits:,} visits (sha256 {seen.sha256[:16]}, order "
        f"{seen.order_sha256[:16]})",
    ]
    if result.on_policy:
        own = result.on_policy
        lines.append(
            f"samples  {100 * own.right:.0f} % of {own.n} a prompt are right; {own.prompts_with_right:,} prompts have a right "
            f"one, {seen.left_out:,} are left out"
        )
    if result.curve:
        lines += [_course(result, name) for name in ("loss", "reward") if name in result.curve[0]]
    return lines + ([] if result.kl is None else _kl_lines(result.kl))


def _kl_lines(kl: "KlMatch") -> list[str]:
    """Where matched SFT stopped, the step before, and what to do where it did not come near."""
    course = [f"{value.value:.4f} [{value.low:.4f}, {value.high:.4f}] at step {step}" for step, value in kl.course[-2:]]
    lines = [
        f"KL from base in nats a token, on {kl.n_prompts} prompts: {', '.join(course) or 'not measured'}; {kl.run} "
        f"{kl.target.value:.4f} [{kl.target.low:.4f}, {kl.target.high:.4f}]"
    ]
    if not kl.reached:
        lines.append("The divergence was not reached, so all steps were trained.")
    elif kl.course[-1][1].low > kl.target.high:
        lines.append("One measurement went past the divergence; lower lr, or match_kl.every, for a nearer match.")
    return lines


def _course(result: "PosttrainResult", name: str) -> str:
    """First, and last value of a number of the curve; of a reward with its interval over prompts."""

    def shown(row: dict[str, float]) -> str:
        low, high = (row.get(f"{name}_{end}", math.nan) for end in ("low", "high"))
        return f"{row[name]:.3f}" + (f" [{low:.3f}, {high:.3f}]" if math.isfinite(low + high) else "")

    first, last = result.curve[0], result.curve[-1]
    n = f"  (n = {result.prompts.per_step} prompts a step)"
    return f"{name:<7}  {shown(first)} at step {first['step']:.0f}, {shown(last)} at step {last['step']:.0f}{n}"


def closing_lines(result: "PosttrainResult", arm: "Arm") -> list[str]:
    """Where the models are, and the next command."""
    steps = ", ".join(map(str, result.checkpoints))
    kept = f"checkpoints at steps {steps}" if steps else "no checkpoints besides the last step"
    models = shlex.join([f"base={arm.base.path}", f"{result.arm}={arm.folder}"])
    return [f"\nWritten to {arm.folder} ({kept})", f"Next: mechprobe evaluate --models {models} --tasks FILE --run RUN"]
