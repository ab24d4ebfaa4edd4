"""``mechprobe plan`` and ``mechprobe bench``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mechprobe.planning.rates import Rates

Config = Annotated[Path | None, typer.Option("--config", "-c", help="Settings of the run (TOML).")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="SECTION.KEY=VALUE", help="Override one setting. May be repeated."),
]
Models = Annotated[
    list[str] | None,
    typer.Option("--models", "-m", metavar="NAME=PATH ...", help="Models by name: folders or hub names."),
]
ModelDtype = Annotated[
    str | None,
    typer.Option("--model-dtype", metavar="auto|float32|bfloat16|float16", help="Dtype of the models (setting dtype)."),
]
CardName = Annotated[
    str | None, typer.Option("--card", help="A100, H100, H200, L4, L40S or 4090, by their published peaks.")
]
Devices = Annotated[int, typer.Option("--devices", help="Number of cards.")]
Calibration = Annotated[
    Path | None,
    typer.Option("--calibration", help="Rates measured by `mechprobe bench --calibrate`; this machine's by default."),
]
ModelConfig = Annotated[
    Path | None,
    typer.Option("--model-config", help="A config.json that stands for every model; nothing is downloaded."),
]
Prompts = Annotated[int, typer.Option("--assume-prompts", min=1, help="Number of prompts, where they cannot be read.")]
PromptTokens = Annotated[
    int, typer.Option("--assume-prompt-tokens", min=1, help="Tokens of a prompt, where it cannot be read.")
]
Samples = Annotated[
    int, typer.Option("--assume-samples", min=1, help="Samples of each of five tasks, where they cannot be read.")
]
Response = Annotated[
    int | None,
    typer.Option("--assume-response-tokens", min=1, help="Tokens of a response. By default the longest allowed."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Device = Annotated[str, typer.Option("--device", help="Device to measure: cpu, cuda, cuda:1.")]
Calibrate = Annotated[bool, typer.Option("--calibrate", help="Measure this machine; takes about a minute.")]
Out = Annotated[
    Path | None, typer.Option("--out", "-o", help="Calibration file; by default in the user's cache folder.")
]


def plan(
    config: Config = None,
    set_: Set = None,
    models: Models = None,
    model_dtype: ModelDtype = None,
    card: CardName = None,
    devices: Devices = 1,
    calibration: Calibration = None,
    model_config: ModelConfig = None,
    prompts: Prompts = 10_000,
    prompt_tokens: PromptTokens = 256,
    samples: Samples = 200,
    response_tokens: Response = None,
    as_json: AsJson = False,
) -> None:
    """Say what every stage of a run would cost: FLOP, memory, disk and time. Reads no weights and writes nothing."""
    from mechprobe.cli.options import parse_models
    from mechprobe.cli.printing import say, say_json
    from mechprobe.errors import ConfigError
    from mechprobe.lab.summary import DEFAULT_LAB, shipped_run_file
    from mechprobe.planning.cards import card_named
    from mechprobe.planning.plan import plan_config
    from mechprobe.planning.rates import Rates, default_place
    from mechprobe.planning.work import Assumed
    from mechprobe.run_config import RunConfig

    if card is not None and calibration is not None:
        raise ConfigError("--card and --calibration name two devices; give one of them.")
    rates = Rates.of_card(card_named(card)) if card is not None else Rates.load(calibration or default_place())
    source = config or (shipped_run_file(DEFAULT_LAB) if not models else None)
    given = parse_models(models) if models else None
    settings = RunConfig.build(source, set_ or (), models=given, dtype=model_dtype)
    assumed = Assumed(prompts=prompts, prompt_tokens=prompt_tokens, samples=samples, response_tokens=response_tokens)
    found = plan_config(settings, rates, devices=devices, model_config=model_config, assumed=assumed)
    if as_json:
        say_json(found.to_dict())
        return
    for line in found.lines:
        say(line)


def bench(calibrate: Calibrate = False, device: Device = "cpu", out: Out = None, as_json: AsJson = False) -> None:
    """Measure how fast this machine is, for `mechprobe plan` and the times of --dry-run."""
    from dataclasses import asdict

    from mechprobe.cli.printing import say, say_json
    from mechprobe.errors import ConfigError
    from mechprobe.planning.calibrate import calibrate as measure
    from mechprobe.planning.rates import default_place
    from mechprobe.progress import activity
    from mechprobe.stage_folder import require_creatable

    if not calibrate:
        raise ConfigError("bench does one thing: give --calibrate. Scripts in benchmarks/ measure the rest.")
    place = out or default_place()
    require_creatable(place.parent)
    if place.is_dir():
        raise ConfigError(f"{place} is a folder; give the path of a file with --out.")
    with activity(f"measuring {device}"):
        rates = measure(device)
    rates.save(place)
    if as_json:
        say_json({"file": str(place), **asdict(rates)})
        return
    for line in _rate_lines(rates):
        say(line)
    say(f"\nWritten to {place}\nNext: mechprobe plan --config FILE")


def _rate_lines(rates: "Rates") -> list[str]:
    """The main rates of a calibration."""
    blocks = "; ".join(
        f"{dtype} "
        + ", ".join(f"{few / 1e9:,.0f}–{full / 1e9:,.0f} at width {width}" for width, (few, full) in row.items())
        for dtype, row in rates.blocks.items()
    )
    units, made = rates.units, rates.made
    return [
        f"{rates.name}, {made['threads']} threads, load {made['load'][0]:g}, measured in {made['seconds']:.0f} s",
        f"blocks    GFLOP/s on few and many tokens in {blocks}",
        f"training  {rates.training / 1e9:,.0f} GFLOP/s of a crosscoder's step, {1e9 * rates.selection:.2g} ns a score",
        f"memory    {rates.bandwidth / 1e9:.1f} GB/s; disk {rates.write / 1e6:,.0f} MB/s written, {rates.read / 1e6:,.0f} read",
        f"calls     {1e6 * rates.call_s:.0f} µs a block, {1e3 * rates.step_s:.2f} ms a generation step",
        f"start     {rates.started('program', 'models'):.1f} s, {rates.holds('program', 'models') / 1e6:,.0f} MB with a model library",
        f"host      {1e3 * units['record']:.2g} ms a response, {units['figure']:.2g} s a figure, {units['loaded']:.2g} s to load a small model",
    ]
