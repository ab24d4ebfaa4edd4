"""The verdict over several dictionaries as one table."""

from mechprobe.formatting import interval, p_value, percent, points
from mechprobe.report.result import JsonObject, Section, Table
from mechprobe.report.run_files import RunFiles


def dictionary_seeds_part(files: RunFiles) -> Section | None:
    """The part of the interventions, or None where the run has one dictionary only."""
    found = files.dictionary_seeds
    if found is None:
        return None
    edits = found["edits"]
    columns = [
        "seed", "quality gate", "live features", "features of the set", "live found again %", "set found again anywhere %",
        "set found again in the other set %", "by chance %", "p",
        *(f"{edit['edit']} in {edit['model']}, points" for edit in edits),
    ]  # fmt: skip
    matched = [None, *found["found_again"]]  # the first dictionary is compared with itself in no column
    rows = [
        [*_about(each), *_matched(match), *(_verdict(edit, place) for edit in edits)]
        for place, (each, match) in enumerate(zip(found["dictionaries"], matched, strict=True))
    ]
    spread = ["median [range]", *["–"] * 8, *(_spread(edit, len(rows)) for edit in edits)]
    note = (
        "The dictionaries were trained on the same store and differ in their training seed. Each chose its set by the same rule and was "
        "judged with its own controls. Features are paired one to one by the cosine of their decoders. By chance: a random set of live "
        "features in place of the other set. Shares have 95 % Wilson intervals. dictionaries/compared/dictionary_seeds.json holds all "
        "numbers."
    )
    table = Table(title="Sets and verdicts of every dictionary", head=columns, rows=[*rows, spread], notes=[note])
    return Section(id="dictionaries", title="Other dictionaries", says=str(found["sentence"]), tables=[table])


def _about(dictionary: JsonObject) -> list[str]:
    gate = "passed" if dictionary["trusted"] else "failed"
    return [str(dictionary["seed"]), gate, f"{dictionary['n_live']:,}", str(dictionary["n_features"])]


def _matched(match: JsonObject | None) -> list[str]:
    if match is None:
        return ["–"] * 5
    shares = [interval(match[name]) for name in ("live", "anywhere", "in_set")]
    return [*shares, percent(match["in_set_chance"], 1), p_value(match["p_in_set"])]


def _verdict(edit: JsonObject, place: int) -> str:
    """Effect and verdict of one dictionary."""
    words = [interval(edit["effects"][place], signed=True), edit["verdicts"][place], edit["against_rivals"][place]]
    if len(set(filter(None, edit["readouts"]))) > 1:
        words.append(f"{edit['readouts'][place] or 'no'} read-out")
    return "; ".join(filter(None, words))


def _spread(edit: JsonObject, n: int) -> str:
    low, high = points(edit["smallest"]), points(edit["largest"])
    return f"{points(edit['median'])} [{low}, {high}]; {edit['n_same']} of {n} as the first"
