"""Ceilings: what replacing the whole residual does at every site."""

from mechprobe.formatting import interval, percent
from mechprobe.report.result import CeilingRow, CeilingsSection, JsonObject
from mechprobe.report.run_files import RunFiles


def ceilings_section(files: RunFiles) -> CeilingsSection | None:
    """The section, or None if `mechprobe localize` has not run."""
    ceilings = files.ceilings
    if ceilings is None:
        return None
    tasks = list(ceilings["tasks"])
    return CeilingsSection(
        tasks=tasks,
        base=ceilings["pair"][0],
        tuned=ceilings["pair"][1],
        chosen=ceilings["chosen"],
        reason=ceilings["reason"],
        rows=[
            CeilingRow(
                site=site,
                chosen=site == ceilings["chosen"],
                sufficiency_share=percent(value["sufficiency_share"]),
                necessity_share=percent(value["necessity_share"]),
                sufficiency=[interval(value["sufficiency"].get(task)) for task in tasks],
                necessity=[interval(value["necessity"].get(task)) for task in tasks],
            )
            for site, value in ceilings["sites"].items()
        ],
    )


def ceilings_sentence(ceilings: JsonObject) -> str:
    """Both ceilings of the chosen site."""
    chosen, (base, tuned) = ceilings["chosen"], ceilings["pair"]
    site, n = ceilings["sites"][chosen], max(ceilings["n"].values())
    return (
        f"At site {chosen}, {base} with the residual of {tuned} reaches {percent(site['sufficiency_share'])} % of the gain "
        f"(sufficiency), and {tuned} with the residual of {base} loses {percent(site['necessity_share'])} % of it "
        f"(necessity; n = {n} per task)."
    )
