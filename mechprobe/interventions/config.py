"""Settings of the interventions stage."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from mechprobe.comparison import Comparison
from mechprobe.errors import ConfigError
from mechprobe.interventions.edits.edit import Edit, edit_sweep
from mechprobe.selection.config import Ranking
from mechprobe.types import ReadoutMode


class InterveneConfig(Comparison):
    """Settings of ``mechprobe intervene``."""

    features: str | None = None
    """Which features: top50, top:N, agnostic, rule:..., file:..., ids:... or random:N@SEED; None: the selection's own."""
    ranking: Ranking | None = None
    """Ranking that ``top`` and ``agnostic`` use; None: the selection's."""
    compare: tuple[Ranking, ...] = ("score",)
    """Other rankings whose set of the same rule is run beside it (without random sets of its own)."""
    threshold: float | None = Field(default=None, gt=0, lt=1)
    """Share of a task's maximum above which a feature counts as task-agnostic; None: the selection's."""
    edits_tuned: tuple[str, ...] = ("ablate", "transplant")
    """Edits of the tuned model; a transplant takes the base's features. Here and in the next two a sweep (``clamp:1,3`` or
    ``scale:0..2:4``, see `mechprobe.interventions.edits.edit.edit_sweep`) stands for its edits."""
    edits_base: tuple[str, ...] = ("clamp:3.0", "transplant")
    """Edits of the base model; a transplant takes the tuned model's features."""
    doses: tuple[str, ...] = ("clamp:0.5", "clamp:1.0", "clamp:10.0")
    """Further strengths of the selected set in the base model."""
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 5, 10, 20)
    """Sizes of the ranking's head that are transplanted, beside the whole selection."""
    positions: str = "all"
    """Where edits act, see `mechprobe.interventions.hooks.positions.PositionRule.parse`: ``all``, ``prompt``, ``response``,
    ``last_prompt_token``, or a class of tokens such as ``all:not_special``. Ceilings act everywhere."""
    leave_one_out: bool = True
    """Whether the set chosen without a task is transplanted and judged on that task, for every task that selected."""
    readout: ReadoutMode = "swap"
    """Read-out of every edit but transplants, which have their own."""
    transplant_readout: ReadoutMode = "joint"
    """Read-out of transplants and of their controls: what the verdict on them is of. The set is also run under another
    (``swap``; ``joint`` where this is not), without controls, and the results say where the two disagree."""
    n_random: int = Field(default=20, ge=0)
    """Random sets, matched on density, decoder norm and write, for every main edit."""
    n_shuffled: int = Field(default=20, ge=1)
    """Controls of equal norm for every main edit: its change on each token, turned to other features' directions."""
    n_per_task: int | None = Field(default=64, ge=1)
    """Samples of each task's evaluation half; None takes all."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest response, in tokens; what is cut short counts as unparsed, in the clean runs too. None: the tasks' own."""
    force_prefix: str = ""
    """A forced beginning of the base's response, printed as the baseline of every edit of it; empty for none."""
    collateral_file: str = ""
    """Unrelated texts for the collateral (any source of prompts, see docs/prompts.md); empty takes held-out prompts of the run."""
    collateral_texts: int = Field(default=256, ge=0)
    """Texts that collateral is measured on, from the top; 0 leaves it out."""
    collateral_length: int = Field(default=256, ge=2)
    """Longest of them, in tokens; what is longer is cut."""
    min_ceiling_share: float = Field(default=0.5, ge=0, le=1)
    """Below this share of the gain the site's ceiling is too low for a verdict."""
    min_n: int = Field(default=20, ge=1)
    """Samples below which a row, pooled or of one task, gets no verdict: a bootstrap of few samples has no width."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Level of every test behind a verdict."""
    batch_size: int = Field(default=512, ge=1)
    """Prompts generated at a time."""
    workers: int = Field(default=1, ge=1)
    """Processes that share the conditions, each with its share of the threads; small models on a CPU gain most.
    Scripts that ask for more than one need the usual ``if __name__ == "__main__":`` guard."""
    seed: int = Field(default=0, ge=0)
    """Of halves, random sets, shuffles and bootstraps."""

    @field_validator("edits_tuned", "edits_base", "doses")
    @classmethod
    def _spread_sweeps(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Every edit by itself; one that was written by itself keeps its text, which names conditions."""
        return tuple(
            edit
            for text in texts
            for edit in ([str(one) for one in edit_sweep(text)] if "," in text or ".." in text else [text])
        )

    @model_validator(mode="after")
    def _check_edits(self) -> "InterveneConfig":
        """Every edit can be read and changes something, and none is named twice: its controls would count twice too."""
        for name in ("edits_tuned", "edits_base", "doses"):
            edits = [Edit.parse(text) for text in getattr(self, name)]
            twice = next((edit for edit in edits if edits.count(edit) > 1), None)
            idle = next((edit for edit in edits if name != "doses" and edit.changes_nothing), None)
            if idle is not None:
                raise ConfigError(f"intervene.{name} names '{idle}', which changes nothing; leave it out.")
            if twice is not None:
                raise ConfigError(f"intervene.{name} names '{twice}' twice; name each edit once.")
        if any(Edit.parse(text).kind == "transplant" for text in self.doses):
            raise ConfigError("intervene.doses takes edits of one model, no transplant; put it into edits_base.")
        return self
