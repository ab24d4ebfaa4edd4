"""Settings of the interventions stage."""

from itertools import chain
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from mechprobe.config import Comparison
from mechprobe.errors import ConfigError
from mechprobe.interventions.edits.edit import Edit, edit_sweep
from mechprobe.interventions.rivals.kinds import RIVAL_KINDS, RivalKind
from mechprobe.selection.config import Ranking
from mechprobe.types import ReadoutMode


class InterveneConfig(Comparison):
    """Settings of ``mechprobe intervene``."""

    features: str | None = None
    """Which features: top50, top:N, agnostic, rule:..., file:..., ids:... or random:N@SEED; None takes those of the selection."""
    ranking: Ranking | None = None
    """Ranking behind ``top`` and ``agnostic``; None takes that of the selection."""
    compare: tuple[Ranking, ...] = ("joint", "score")
    """Other rankings; the set of the same rule under each of them is run for comparison, without random sets. The results say
    where one of these sets does more than the selected one."""
    threshold: float | None = Field(default=None, gt=0, lt=1)
    """Share of a task's maximum above which a feature counts as task-agnostic; None takes that of the selection."""
    edits_tuned: tuple[str, ...] = ("ablate", "transplant")
    """Edits of the tuned model; a transplant puts in the base model's features. A sweep such as ``clamp:1,3`` or
    ``scale:0..2:4`` is expanded here, in ``edits_base`` and in ``doses``; see
    `mechprobe.interventions.edits.edit.edit_sweep`."""
    edits_base: tuple[str, ...] = ("clamp:3.0", "transplant")
    """Edits of the base model; a transplant puts in the tuned model's features."""
    doses: tuple[str, ...] = ("clamp:0.5", "clamp:1.0", "clamp:10.0")
    """Further strengths of the selected set in the base model."""
    sizes: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 5, 10, 20)
    """Numbers of first features of the ranking that are transplanted, beside the whole selection."""
    positions: str = "all"
    """Where edits act, see `mechprobe.interventions.hooks.positions.PositionRule.parse`: ``all``, ``prompt``, ``response``,
    ``last_prompt_token``, or a class of tokens such as ``all:not_special``. Positions that the store dropped are left alone unless
    ``:with_dropped`` is appended. Ceilings always act on all positions."""
    leave_one_out: bool = True
    """Whether, for every selecting task, the set chosen without it is transplanted and judged on it."""
    readout: ReadoutMode = "swap"
    """Read-out of all edits except transplants."""
    transplant_readout: ReadoutMode | Literal["auto"] = "auto"
    """Read-out of transplants and of their controls, on which the verdict rests. ``auto`` takes ``joint`` or ``swap`` by a rule
    on the selection half, see `mechprobe.interventions.conditions.readout_choice`. The set is also transplanted under a second
    read-out (``joint``, or ``swap`` where this is ``joint``) without controls, and the results report where the two disagree."""
    n_random: int = Field(default=99, ge=0)
    """Random sets for every main edit, matched on density, decoder norm and the norm that the edit writes: J for a transplant, the
    contribution norm for other edits."""
    n_rescaled: int | None = Field(default=None, ge=0)
    """How many of these sets run again with their change scaled to the norm of the selected set's change on every token; None takes
    all."""
    n_shuffled: int = Field(default=99, ge=1)
    """Equal-norm controls for every main edit: its change on each token, turned to other features' decoder directions."""
    n_shifted: int | None = Field(default=None, ge=0)
    """Equal-norm controls for every transplant: its change on each token, turned to other features' shifts between the models;
    None takes as many as ``n_shuffled``."""
    rivals: tuple[RivalKind, ...] = RIVAL_KINDS
    """Rival explanations that run beside every transplant of the selected set, see `mechprobe.interventions.rivals`; empty for
    none."""
    rival_doses: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        default=(1.0, 2.0, 4.0, 8.0), min_length=1
    )
    """Multiples of the mean difference among which the selection half chooses, for every rival of one vector."""
    rival_samples: int = Field(default=32, ge=1)
    """Samples of each task's selection half on which rivals are fitted, and their doses and the read-out chosen."""
    n_per_task: int | None = Field(default=64, ge=1)
    """Samples of each task's evaluation half; None takes all."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Longest response, in tokens; None takes that of each task. A truncated response counts as unparsed, in clean runs too."""
    force_prefix: str = ""
    """Forced beginning of the base model's response, reported as a baseline for its edits; empty for none."""
    collateral_file: str = ""
    """Unrelated texts for the collateral (any prompt source, see docs/prompts.md); empty takes held-out prompts of the run."""
    collateral_texts: int = Field(default=256, ge=0)
    """Texts on which collateral is measured, from the top; 0 skips the measurement."""
    collateral_length: int = Field(default=256, ge=2)
    """Length to which these texts are cut, in tokens."""
    min_ceiling_share: float = Field(default=0.5, ge=0, le=1)
    """Share of the gap between the clean models that the site's ceiling must reach for a verdict."""
    min_n: int = Field(default=20, ge=1)
    """Samples that a row, pooled or of one task, needs for a verdict."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Level of every test behind a verdict."""
    batch_size: int = Field(default=512, ge=1)
    """Prompts generated at a time."""
    workers: int = Field(default=1, ge=1)
    """Processes that share the conditions, each with its share of the threads; small models on a CPU gain most.
    Scripts that ask for more than one need the usual ``if __name__ == "__main__":`` guard."""
    seed: int = Field(default=0, ge=0)
    """Seed of random sets, equal-norm controls and bootstraps."""

    @property
    def readout_of_transplants(self) -> ReadoutMode:
        """Read-out of transplants; ``joint`` for ``auto``, until a run has chosen."""
        return "joint" if self.transplant_readout == "auto" else self.transplant_readout

    @property
    def chooses_readout(self) -> bool:
        """Whether a run has to choose the read-out of its transplants."""
        return self.transplant_readout == "auto" and "transplant" in (*self.edits_base, *self.edits_tuned)

    @field_validator("edits_tuned", "edits_base", "doses")
    @classmethod
    def _spread_sweeps(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Expand sweeps. A single edit keeps its text, because the text names conditions."""
        spread = ([str(e) for e in edit_sweep(text)] if "," in text or ".." in text else [text] for text in texts)
        return tuple(chain.from_iterable(spread))

    @model_validator(mode="after")
    def _check_edits(self) -> "InterveneConfig":
        """Reject edits that cannot be read, that change nothing, or that occur twice and would count their controls twice."""
        for name in ("edits_tuned", "edits_base", "doses"):
            edits = [Edit.parse(text) for text in getattr(self, name)]
            twice = next((edit for edit in edits if edits.count(edit) > 1), None)
            idle = next((edit for edit in edits if name != "doses" and edit.changes_nothing), None)
            if idle is not None:
                raise ConfigError(f"intervene.{name} names '{idle}', which changes nothing; remove it.")
            if twice is not None:
                raise ConfigError(f"intervene.{name} names '{twice}' twice; name each edit once.")
        if any(Edit.parse(text).kind == "transplant" for text in self.doses):
            raise ConfigError(
                "intervene.doses takes edits of one model, but names a transplant; move it to intervene.edits_base."
            )
        return self
