"""`mechprobe skills`: make items of the atomic-skill benchmark, show some, or write its data sheet."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechprobe.cli import options
from mechprobe.cli.long_running import long_running_without_models
from mechprobe.cli.skill_scores import score

if TYPE_CHECKING:
    from mechprobe.evals.skills.item import SkillItem

app = typer.Typer(
    no_args_is_help=True,
    help="Make items of the atomic-skill benchmark, show some, score responses, or write the data sheet.",
)

app.command()(long_running_without_models(score))

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for tasks.jsonl, prompts.jsonl and skills.json.")]
Skills = Annotated[str, typer.Option("--skills", help="Skills, separated by commas. By default all five.")]
Domains = Annotated[str, typer.Option("--domains", help="Domains, separated by commas. By default all four.")]
Levels = Annotated[
    str,
    typer.Option("--levels", help="Levels, such as 1-3,5. By default all of the split: 1-5, or 6 for test_out_param."),
]
Family = Annotated[str | None, typer.Option("--family", help="Only this family.")]
Split = Annotated[
    str,
    typer.Option("--split", help="train, test_in, test_out_param, test_out_template, test_out_family, or all (five)."),
]
Rendering = Annotated[str, typer.Option("--rendering", help="compact (closed vocabulary) or chat (answer in a box).")]
Number = Annotated[int, typer.Option("--n", min=1, help="Items of every cell and level.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of the draw.")]
ReasoningGym = Annotated[
    str,
    typer.Option("--reasoning-gym", help="Also n items a level of these tasks of reasoning-gym, separated by commas."),
]
LmEval = Annotated[bool, typer.Option("--lm-eval", help="Also write the folder lm_eval/ with tasks for lm-eval.")]
Force = Annotated[bool, typer.Option("--force", help="Replace other items in the folder.")]


@app.command()
@long_running_without_models
def make(
    out: Out,
    skills: Skills = "",
    domains: Domains = "",
    levels: Levels = "",
    family: Family = None,
    split: Split = "test_in",
    rendering: Rendering = "compact",
    n: Number = 20,
    seed: Seed = 0,
    reasoning_gym: ReasoningGym = "",
    lm_eval: LmEval = False,
    force: Force = False,
    as_json: options.Json = False,
) -> None:
    """Write questions with answers for `evaluate`, and the same prompts with gold responses for `cache` and `drift`."""
    from mechprobe.cli.printing import say, say_json, table_lines
    from mechprobe.evals.skills.cells import TASKS, Wanted, write_items
    from mechprobe.evals.skills.harness_tasks import write_harness_tasks

    wanted = Wanted(
        _named("--skills", skills), _named("--domains", domains), _levels(levels), family, None if split == "all" else split, rendering, n, seed,
        _named("--reasoning-gym", reasoning_gym),
    )  # fmt: skip
    items = wanted.items()
    write_items(out, wanted, items, force=force)
    tasks = write_harness_tasks(out / "lm_eval", items) if lm_eval else []
    if as_json:
        say_json({"folder": str(out), "n": len(items), "settings": wanted._asdict(), "lm_eval": tasks})
        return
    rows = {
        cell: _summary([item for item in items if item.task == cell]) for cell in dict.fromkeys(i.task for i in items)
    }
    for line in table_lines(rows, ["items", "levels", "chance", "families"], corner="cell"):
        say(line)
    say(f"\n{len(items):,} items, split {split}, rendering {rendering}, seed {seed}: {out}")
    if tasks:
        say(f"{len(tasks)} tasks for lm-eval: lm_eval --include_path {out / 'lm_eval'} --tasks mechprobe_skills")
    chat = " --set text.chat_template=true" if rendering == "chat" else ""
    say(f"Next: mechprobe evaluate --models NAME=PATH --tasks {out / TASKS} --scorer skill{chat}")


@app.command()
@long_running_without_models
def show(
    skill: Annotated[str, typer.Argument(help="Name of the skill.")],
    domain: Annotated[str, typer.Argument(help="Name of the domain.")],
    level: Annotated[int, typer.Option("--level", help="1 to 5, or 6, which is beyond their range.")] = 1,
    family: Family = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Number of items.")] = 2,
    seed: Seed = 0,
    as_json: options.Json = False,
) -> None:
    """Print some items of a cell in both renderings."""
    from mechprobe.cli.printing import say, say_json
    from mechprobe.evals.skills import generate

    drawn = {
        rendering: generate(skill, domain=domain, level=level, family=family, n=n, seed=seed, rendering=rendering)
        for rendering in ("compact", "chat")
    }
    if as_json:
        say_json([item.to_json() for items in drawn.values() for item in items])
        return
    for compact, chat in zip(*drawn.values(), strict=True):
        say(
            f"{compact.id}  level {compact.level}, {compact.split}, chance {compact.chance:.3g}, answer {compact.answer}"
        )
        say(
            f"{_indented(compact.prompt)}\n{_indented(compact.trace)}\n\n{_indented(chat.prompt)}\n\n{_indented(chat.trace)}\n"
        )


@app.command()
@long_running_without_models
def card(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Markdown file; standard output by default.")] = None,
) -> None:
    """Write the data sheet: cells, levels, sizes, chance rates, examples, splits, vocabulary, and what is ours."""
    from mechprobe.cli.printing import say
    from mechprobe.evals.skills.card import card as data_sheet
    from mechprobe.files import write_text

    text = data_sheet()
    if out is None:
        say(text)
        return
    write_text(out, text)
    say(f"Data sheet: {out}")


def _named(option: str, text: str) -> tuple[str, ...]:
    """Names between commas, without repetitions; `ConfigError` for commas or blanks without a name."""
    from mechprobe.errors import ConfigError

    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if text and not names:
        raise ConfigError(
            f"{option} {text!r} names nothing; write names or numbers with commas between, or leave it out."
        )
    return names


def _levels(text: str) -> tuple[int, ...]:
    """``1-3,5`` as numbers; `ConfigError` if it cannot be read."""
    from mechprobe.errors import ConfigError

    found: list[int] = []
    for part in _named("--levels", text):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ConfigError(f"--levels {text!r} cannot be read; write numbers and ranges, for example 1-3,5.")
        low, high = int(first), int(last or first)
        if not 1 <= low <= high <= 6:
            raise ConfigError(f"--levels {text!r}: levels are 1 to 6, and a range rises; correct it.")
        found += range(low, high + 1)
    return tuple(dict.fromkeys(found))


def _summary(items: "list[SkillItem]") -> dict[str, str]:
    levels = sorted({item.level for item in items})
    return {
        "items": str(len(items)),
        "levels": ",".join(map(str, levels)),
        "chance": f"{sum(item.chance for item in items) / len(items):.3f}",
        "families": ", ".join(dict.fromkeys(item.family for item in items)),
    }


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
