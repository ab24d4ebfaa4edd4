"""Settings of ``mechprobe logprobs``."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from mechprobe.config import FrozenConfig
from mechprobe.data.config import PromptsConfig, TextConfig
from mechprobe.drift.divergence.config import OPERATORS, PROCEDURAL

BACKTRACK = (
    "alternatively", "check", "double-check", "hmm", "hold on", "let me check", "let me re-check", "let me recheck", "let me verify",
    "let me reconsider", "make sure", "on second thought", "re-check", "recheck", "reconsider", "try again", "verify", "wait",
)  # fmt: skip
"""Words that check or take back a step (ours; no source of arXiv 2604.06628 gives a list)."""
LISTED = {"backtrack": BACKTRACK, "procedural": PROCEDURAL}
POSITIONAL = ("answer", "special", "digits", "operators", "other")
"""Classes that are no lists of words."""
Word = Annotated[str, Field(min_length=1)]
Bound = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LogprobsConfig(FrozenConfig):
    """Settings of ``mechprobe logprobs``.

    Attributes:
        traces: File of prompts with responses; its ``file`` is empty where the responses of the run's ``evaluate`` stage are read.
        teacher_field: Field of that file with the teacher's log-probability of every response token.
        teacher: Model of the run that is the teacher, instead of values in the file.
        teacher_tokenizer: Folder of the teacher's tokenizer; it must do what the tokenizer of the models does.
        compare: ``tokens``, or ``bytes`` where the teacher has another tokenizer, so that only whole responses can be compared.
        writers: Models whose evaluated responses are the traces; None takes base and the last model of every arm.
        max_prompts: Prompts to draw by seed, each with all its traces; None takes all.
        end_token: Whether the end token of a response that ended counts as its last token.
        too_long: Whether a trace beyond the context is refused or dropped.
        classes: Classes of tokens that are lists of words or phrases, in any case; a token in several belongs to the first. Given ones
            go before the defaults ``backtrack`` and ``procedural``, which an empty list leaves out.
        backtrack: The class whose words are counted in generated text.
        operators: Characters of the token class ``operators``.
        clip: (low, high): r counts as clipped below 1 − low and above 1 + high.
        clamp: Largest |log r| of the ratio r.
        position_bins: Equal parts of a response in which class tokens and controls are matched.
        batch_tokens: Largest number of tokens in a forward pass, padding included.
        draws: Bootstrap draws of each interval.
        flat: Largest gain of accuracy, in shares, that still counts as none when imitation is told.
        checkpoints: Folder of further models, ``<arm>/step_<n>/``.
        text: How prompts become token ids; a run sets it once, in its section ``text``.
        seed: Seed of every random draw.
    """

    traces: PromptsConfig = PromptsConfig()
    teacher_field: str = "teacher_logprobs"
    teacher: str = ""
    teacher_tokenizer: str = ""
    compare: Literal["tokens", "bytes"] = "tokens"
    writers: tuple[str, ...] | None = None
    max_prompts: int | None = Field(default=500, ge=1)
    end_token: bool = True
    too_long: Literal["refuse", "drop"] = "refuse"
    classes: dict[str, tuple[Word, ...]] = Field(default_factory=lambda: dict(LISTED))
    backtrack: str = "backtrack"
    operators: str = OPERATORS
    clip: tuple[Bound, Bound] = (1.0, 1.0)
    clamp: float = Field(default=20.0, gt=0, le=100)
    position_bins: int = Field(default=5, ge=1)
    batch_tokens: int = Field(default=4096, ge=1)
    draws: int = Field(default=1000, ge=100)
    flat: float = Field(default=0.05, gt=0, lt=1)
    checkpoints: str = ""
    text: TextConfig = TextConfig()
    seed: int = Field(default=0, ge=0)

    @field_validator("classes")
    @classmethod
    def _names(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        """The given classes, then those of the defaults that are not given."""
        taken = next((name for name in value if name in POSITIONAL or not name.strip()), None)
        if taken is not None:
            raise ValueError(f"the class name '{taken}' is taken or empty; use another than {', '.join(POSITIONAL)}")
        if hidden := next((name for name in value if not name.isprintable()), None):
            raise ValueError(f"the class name {hidden!a} has a control character, but tables print it; remove that")
        if blank := next((name for name, words in value.items() if not all(word.strip() for word in words)), None):
            raise ValueError(f"the class '{blank}' holds a blank word; remove it")
        return {**value, **{name: words for name, words in LISTED.items() if name not in value}}

    @property
    def lists(self) -> dict[str, tuple[str, ...]]:
        """The classes that have words; an empty list leaves a class out."""
        return {name: words for name, words in self.classes.items() if words}

    @property
    def class_names(self) -> tuple[str, ...]:
        """All classes: those with lists first, then the others."""
        return (*self.lists, *POSITIONAL)
