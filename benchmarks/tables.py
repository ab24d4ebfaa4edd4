"""Write the tables of docs/speed.md from the result files; a test compares both.

    python -m benchmarks.tables [--check]

This script replaces everything between ``<!-- table NAME -->`` and ``<!-- end NAME -->``. For a result file that is missing or
has an older format, it writes a sentence with the command to run.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import FORMAT

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "speed.md"
RESULTS = ROOT / "artifacts" / "benchmarks"
NAMES = {
    "sae_training": "ours",
    "sae_training_dense": "ours, dense",
    "sae_lens": "sae-lens",
    "dictionary_learning": "dictionary_learning",
    "dense_crosscoder": "dense crosscoder (crosscoder_learning's formula)",
}
WAYS = {
    "bare_eager": "bare transformers forward, stopped early, eager",
    "bare_sdpa": "the same with sdpa (other bits)",
    "reader_plain": "our plain reader",
    "reader_bridge": "our TransformerBridge reader",
    "collect_plain": "collect_shard, plain reader",
    "collect_bridge": "collect_shard, bridge reader",
}
EDIT_WAYS = {
    "plain_eager": "plain transformers generation, eager",
    "plain_sdpa": "the same with sdpa (other bits)",
    "empty_hook": "hooks that change nothing",
    "swap_ablate": "ablate, one model",
    "swap_clamp": "clamp, one model",
    "swap_replace": "reconstruction only, one model",
    "joint_ablate": "ablate, three models",
    "joint_transplant": "transplant, three models",
}

GPU_WAYS = {
    "bare": "bare transformers forward, stopped early",
    "reader_plain": "our plain reader",
    "collect_plain": "collect_shard, rows on the host",
    "plain": "plain transformers generation",
    "swap_ablate": "ablate, one model",
    "joint_ablate": "ablate, three models",
    "joint_transplant": "transplant, three models",
}

DRAFT_WAYS = {"drafted": "draws", "stacked": "draws_plain", "plain": "draws_plain"}
"""Way to run conditions → the number of draws that it ran."""

Report = Mapping[str, Any]


class TablesError(Exception):
    """The page or a result file cannot be used; the message gives the reason."""


def load(path: Path) -> Report | None:
    """Read a result; None if the file is missing or has another format.

    Raises:
        TablesError: The result is from a ``--quick`` run, whose numbers mean nothing.
    """
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    if report.get("format") != FORMAT:
        return None
    if report["settings"]["quick"]:
        raise TablesError(f"{path.name} is from a --quick run; run the benchmark without --quick.")
    return report


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    alignment = ["---", *["---:"] * (len(header) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (header, alignment, *rows)]


def _where(report: Report, path: str) -> str:
    machine, settings = report["machine"], report["settings"]
    place = machine.get("device", f"{machine['cpu']}, {settings['threads']} of {machine['cores']} cores")
    versions = ", ".join(f"{name} {found or 'absent'}" for name, found in report["versions"].items())
    note = f" {report['note']}." if report["note"] else ""
    return (
        f"`{path}`: {place}, {settings['malloc']} malloc, load {machine['load_1min']}; {versions}; "
        f"median of {settings['rounds']} rounds.{note}"
    )


def _where_gpu(report: Report, path: str) -> str:
    machine = report["machine"]
    card = (
        f"{machine['device']}, {machine['device_memory_gib']} GiB, driver {machine['driver']}, CUDA {machine['cuda']}"
    )
    versions = ", ".join(f"{name} {found or 'absent'}" for name, found in report["versions"].items())
    rates = report["steps"]["card"]["results"]["rates"]
    measured = f"{rates['bfloat16_tflops']:,.0f} TFLOP/s in bfloat16, copies at {rates['copy_gb_per_s']:,.0f} GB/s"
    return f"`{path}`: {card}; {measured}; {versions}; {report['seconds']:.0f} s in all."


def _between(found: Mapping[str, float], form: str) -> str:
    """Median and range over the rounds."""
    return f"{found['median']:{form}} ({found['min']:{form}} to {found['max']:{form}})"


def train_tables(report: Report) -> list[str]:
    """Tables of speed, loss, FVE and memory, and the profile of our step."""
    lines = []
    for name, result in report["results"].items():
        lines += [*_train_table(name, result), "", *_profile_table(result["profile"]), ""]
    return lines[:-1]


def _train_table(name: str, result: Report) -> list[str]:
    setting = result["setting"]
    shape = f"d = {setting['d_model']}, F = {setting['d_sae']}, k = {setting['k']}, batch {setting['batch_size']}"
    rows = [_train_row(contestant, found, result) for contestant, found in result["contestants"].items()]
    header = ["", "tokens/s", "ours is faster by", "training loss", "held-out FVE", "peak above data"]
    title = f"**{name}**: {setting['n_models']} models, {shape}, {setting['precision']}; {result['steps']} steps each."
    return [title, "", *_table(header, rows)]


def _train_row(contestant: str, found: Report, result: Report) -> list[str]:
    if "absent" in found:
        return [f"{NAMES[contestant]}: {found['absent']}", *["–"] * 5]
    speedup = result["speedup"].get(contestant)
    factor = _between(speedup["wall"], ".2f") + " ×" if speedup else "–"
    same = contestant == "sae_training" or contestant in result["loss_difference"]
    loss = f"{found['training_loss']:.3f}" if same else "another objective"
    memory = f"{found['memory_bytes']['above'] / 2**20:,.0f} MiB" if "memory_bytes" in found else "–"
    fve = f"{found['held_out']['fve']:.3f}"
    return [NAMES[contestant], f"{found['tokens_per_s']:,.0f}", factor, loss, fve, memory]


def _profile_table(profile: Report) -> list[str]:
    step = profile["step_s"]
    parts = sorted(profile["parts_s"].items(), key=lambda item: -item[1])
    rows = [[name, f"{1e3 * seconds:.2f}", f"{seconds / step:.0%}"] for name, seconds in parts if seconds > 0]
    floor = profile["encode_product_s"]
    rows.append(["*the encoder's product alone (floor)*", f"{1e3 * floor:.2f}", f"{floor / step:.0%}"])
    rate = profile["encode_product_flop_per_s"] / 1e9
    title = (
        f"Our step ({profile['kernel']}): {1e3 * step:.1f} ms, the product at {rate:,.0f} GFLOP/s. {profile['bound']}"
    )
    return [title, "", *_table(["part", "ms", "share"], rows)]


def _wanted(goals: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of the speeds that are wanted; nothing where there is none."""
    rows = [
        [goal["name"], f"{goal['found']:.2f}", f"{goal['at_least']:.2f}", "yes" if goal["met"] else "no"]
        for goal in goals
    ]
    return ["", *_table(["wanted", "measured", "at least", "reached"], rows)] if rows else []


def store_tables(report: Report) -> list[str]:
    """Tables of reads, shuffled batches and training."""
    results = report["results"]
    rows = []
    for label, found in results["reads"].items():
        for name, rate in found["mb_per_s"].items():
            share = found["share_of_memmap"].get(name)
            rows.append([f"{label}: {name}", _between(rate, ",.0f"), _between(share, ".0%") if share else "–"])
    n_rounds = len(next(iter(results["reads"].values()))["mb_per_s"]["store"]["all"])
    title = f"warm reads of three models, bfloat16, {n_rounds} rounds"
    lines = [*_table([title, "MB/s", "share of memmap"], rows), *_wanted(report.get("goals", []))]
    batches = results["batches"]["tokens_per_s"]
    lines += ["", *_table(["shuffled batches", "tokens/s"], [[n, _between(r, ",.0f")] for n, r in batches.items()])]
    training = results["training"]
    shares = training["share_of_memory"]
    rows = [
        [name, _between(rate, ",.0f"), _between(shares[name], ".1%") if name in shares else "–"]
        for name, rate in training["tokens_per_s"].items()
    ]
    shape = training["shape"]
    title = f"training, d = {shape['d_model']}, F = {shape['d_sae']}, from"
    return [*lines, "", *_table([title, "tokens/s", "share of memory"], rows)]


def harvest_tables(report: Report) -> list[str]:
    """One table per model."""
    lines: list[str] = []
    for result in report["results"].values():
        model = result["model"]
        rows = [_harvest_row(way, found) for way, found in sorted(result["ways"].items(), key=_way_order)]
        whole = _between(result["pipeline"]["tokens_per_s"], ",.0f")
        rows.append(["whole pipeline, loading and writing included", whole, "–"])
        equal = ", ".join(f"{name} {'yes' if same else 'no'}" for name, same in result["bits_equal_bare_eager"].items())
        title = (
            f"{model['layers']} layers, width {model['d_model']}, {model['site']} (same bits as bare eager: {equal})"
        )
        lines += [*_table([title, "tokens/s", "share of bare eager"], rows), ""]
    return lines[:-1]


def _way_order(item: tuple[str, Any]) -> int:
    return list(WAYS).index(item[0])


def _harvest_row(way: str, found: Report) -> list[str]:
    if "absent" in found:
        return [f"{WAYS[way]}: {found['absent']}", "–", "–"]
    return [WAYS[way], f"{found['tokens_per_s']:,.0f}", _between(found["share_of_bare"], ".0%")]


def intervene_tables(report: Report) -> list[str]:
    """One table per family."""
    lines: list[str] = []
    for result in report["results"].values():
        model, setting = result["model"], result["setting"]
        title = (
            f"{model['layers']} layers, width {model['d_model']}, {setting['site']}, {setting['prompts']} prompts, "
            f"{setting['new_tokens']} new tokens, {result['features_edited']} of {setting['d_sae']} features"
        )
        rows = [
            [
                name,
                f"{result['ways'][way]['tokens_per_s']:,.0f}",
                _between(result["ways"][way]["share_of_plain"], ".0%"),
            ]
            for way, name in EDIT_WAYS.items()
            if way in result["ways"]
        ]
        lines += [*_table([title, "new tokens/s", "share of plain eager"], rows), ""]
    return lines[:-1]


def gpu_tables(report: Report) -> list[str]:
    """Tables of the GPU check: what passed, what was wanted, and the speeds."""
    steps = report["steps"]
    rows = [
        [
            name,
            found["state"],
            f"{sum(check['ok'] for check in checks)} of {len(checks)}",
            f"{found['wall_seconds']:.0f}",
        ]
        for name, found in steps.items()
        if (checks := found.get("checks", [])) is not None and "wall_seconds" in found
    ]
    rows += [[name, found["state"], "–", "–"] for name, found in steps.items() if "wall_seconds" not in found]
    lines = _table(["step", "state", "checks that hold", "seconds"], rows)
    lines += _wanted([goal for found in steps.values() for goal in found.get("goals", [])])
    results = {name: found.get("results", {}) for name, found in steps.items()}
    if training := results.get("training", {}).get("training"):
        lines += ["", *_train_table("training", training)]
        lines += ["", *_profile_table(training["profile"])] if "profile" in training else []
    return [*lines, *_family_tables(results.get("family", {}))]


def _family_tables(results: Report) -> list[str]:
    lines: list[str] = []
    if harvest := results.get("harvest"):
        tokens = harvest["tokens"]
        title = f"harvest, {tokens['rows']:,} tokens, sequences up to {tokens['longest']}"
        rows = [
            [GPU_WAYS[way], f"{found['tokens_per_s']:,.0f}", _between(found["share_of_bare"], ".0%"), "–"]
            for way, found in harvest["ways"].items()
        ]
        rows[-1][-1] = _gib(harvest["peak_bytes"])
        lines += ["", *_table([title, "tokens/s", "share of bare", "peak memory"], rows)]
    if generation := results.get("generation"):
        setting = generation["setting"]
        title = f"generation, {setting['prompts']} prompts, {setting['new_tokens']} new tokens"
        rows = [
            [
                GPU_WAYS[way],
                f"{found['tokens_per_s']:,.0f}",
                _between(found["share_of_plain"], ".0%"),
                _gib(found["peak_bytes"]),
            ]
            for way, found in generation["ways"].items()
        ]
        lines += ["", *_table([title, "new tokens/s", "share of plain", "peak memory"], rows)]
    if stream := results.get("stream"):
        title = f"training in mode stream, F = {stream['d_sae']}, batch {stream['batch_size']}"
        row = [f"{stream['tokens']:,} tokens", f"{stream['tokens_per_s']:,.0f}", "–", _gib(stream["peak_bytes"])]
        lines += ["", *_table([title, "tokens/s", "", "peak memory"], [row])]
    return lines


def _gib(n_bytes: int | None) -> str:
    return "–" if n_bytes is None else f"{n_bytes / 2**30:.1f} GiB"


def drafts_tables(report: Report) -> list[str]:
    """Conditions per CPU second of every kind of control, and what all draws cost beside the old twenty."""
    found = report["results"]
    rows = [
        [
            f"{row['edit']} in {row['model']}, {row['kind']}",
            f"{row['draws']}",
            *(f"{row[draws] / row[f'{way}_cpu_s']:.1f}" for way, draws in DRAFT_WAYS.items()),
        ]
        for row in found["groups"]
    ]
    header = ["controls", "draws", "from drafts, conditions/s", "without drafts", "one after another"]
    summary, old = found["summary"], found["summary"]["old_cpu_s"]
    both, every = summary["matched_and_equal_norm"], summary["all"]
    compared, different = found["responses_compared"], found["different"]
    gaps = ", ".join(f"{one['logit_difference']:.1e}" for one in different)
    differ = f"{len(different)} differ, where the two logits lie {gaps} apart" if different else "none differs"
    return [
        *_table(header, rows),
        "",
        f"20 matched and 20 equal-norm draws of every main edit took {old:.0f} CPU seconds one after another. From drafts, "
        f"{both['draws']} matched (`random`) and equal-norm (`shuffled`) draws take {both['drafted_cpu_s']:.0f} "
        f"({both['share_of_old']:.2f} of that), and all {every['draws']} draws of the four kinds {every['drafted_cpu_s']:.0f} "
        f"({every['share_of_old']:.2f}). Of {compared:,} responses that ran both ways, {differ}.",
    ]


TABLES: dict[str, tuple[str, Callable[[Report], list[str]], str]] = {
    "train": (
        "train_cpu.json",
        train_tables,
        "python -m benchmarks.train --settings demo small --steps 2 --train-steps 40 "
        "--out artifacts/benchmarks/train_cpu.json",
    ),
    "train_tuned": (
        "train_cpu_tuned.json",
        train_tables,
        "python -m benchmarks.train --settings small --steps 2 --malloc tuned --out artifacts/benchmarks/train_cpu_tuned.json",
    ),
    "train_medium": (
        "train_medium_cpu.json",
        train_tables,
        "python -m benchmarks.train --settings medium --steps 1 --rounds 5 --out artifacts/benchmarks/train_medium_cpu.json",
    ),
    "train_large": (
        "train_large_cpu.json",
        train_tables,
        "python -m benchmarks.train --settings large --batch-size 1024 --steps 1 --out artifacts/benchmarks/train_large_cpu.json",
    ),
    "train_gpu": (
        "train_gpu.json",
        train_tables,
        "python -m benchmarks.train --device cuda --precision bfloat16 --settings small medium large --steps 20 "
        "--out artifacts/benchmarks/train_gpu.json",
    ),
    "store": ("store_cpu.json", store_tables, "python -m benchmarks.store --out artifacts/benchmarks/store_cpu.json"),
    "harvest": (
        "harvest_cpu.json",
        harvest_tables,
        "python -m benchmarks.harvest --out artifacts/benchmarks/harvest_cpu.json",
    ),
    "intervene": (
        "intervene_cpu.json",
        intervene_tables,
        "python -m benchmarks.intervene --out artifacts/benchmarks/intervene_cpu.json",
    ),
    "drafts": (
        "drafts_cpu.json",
        drafts_tables,
        "python -m benchmarks.drafts --run runs/lab --plain 3 --out artifacts/benchmarks/drafts_cpu.json",
    ),
    "gpu": ("gpu_*.json", gpu_tables, "python -m benchmarks.gpu_check"),
}
"""Name on the page → file (or pattern of files), function that writes its table, and command that makes the file."""


def section(name: str, folder: Path = RESULTS) -> str:
    """The text between the markers of ``name``."""
    file, write, command = TABLES[name]
    found = [(path, report) for path in sorted(folder.glob(file)) if (report := load(path)) is not None]
    if not found:
        return f"Not measured with these scripts yet: `{command}`"
    parts = []
    for path, report in found:
        where = _where_gpu if write is gpu_tables else _where
        parts.append("\n".join([*write(report), "", where(report, f"artifacts/benchmarks/{path.name}")]))
    return "\n\n".join(parts)


def filled(page: str, folder: Path = RESULTS) -> str:
    """Replace every table of the page.

    Raises:
        TablesError: markers are missing, doubled, or of no table.
    """
    named = re.findall(r"<!-- table (\w+) -->", page)
    if sorted(named) != sorted(TABLES):
        raise TablesError(
            f"the page has tables {sorted(named)}, but the script has {sorted(TABLES)}; correct its markers."
        )
    for name in named:
        pattern = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text = section(name, folder)
        page, n_found = pattern.subn(lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page)
        if n_found != 1:
            raise TablesError(f"the table {name} has no end marker; write <!-- end {name} --> after it.")
    return page


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tables, or with ``--check`` compare them with the result files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with code 1 if the page differs")
    arguments = parser.parse_args(argv)
    page = PAGE.read_text(encoding="utf-8")
    try:
        wanted = filled(page)
    except TablesError as error:
        raise SystemExit(f"docs/speed.md: {error}") from None
    if page == wanted:
        print("docs/speed.md is up to date")
    elif arguments.check:
        raise SystemExit("docs/speed.md differs from the result files; run `python -m benchmarks.tables`.")
    else:
        PAGE.write_text(wanted, encoding="utf-8")
        print("docs/speed.md written")


if __name__ == "__main__":
    main()
