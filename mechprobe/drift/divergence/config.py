"""Settings of ``mechprobe drift``."""

from pydantic import Field

from mechprobe.config import FrozenConfig
from mechprobe.data.config import TextConfig

OPERATORS = "+-*/=<>^%×÷·±≤≥≠≈√"
PROCEDURAL = (
    "actually", "again", "alternatively", "ans", "answer", "assume", "because", "but", "check", "compute", "consider", "else",
    "finally", "first", "for", "given", "hence", "however", "if", "let", "maybe", "next", "now", "recall", "second", "since",
    "so", "step", "suppose", "then", "therefore", "think", "thus", "verify", "wait", "when", "while",
)  # fmt: skip
"""Words that steer a solution (ours; arXiv 2507.00432 shows word clouds and no list)."""


class DriftConfig(FrozenConfig):
    """Settings of ``mechprobe drift``.

    Attributes:
        base: Name of the model before post-training, with which every other model is compared.
        checkpoints: Folder of further models, ``<arm>/step_<n>/``.
        max_prompts: Number of prompts to draw by seed, each with all its continuations; None takes all.
        operators: Characters of the token class ``operators``.
        procedural: Words of the token class ``procedural``, in any case.
        top: Number of logits that rise and fall most at each position, and length of the token tables.
        positions: Sampled positions for the PCA shift and CKA.
        lens_texts: Number of unrelated texts of the activation-difference lens; 0 leaves it out.
        lens_positions: Positions of each text whose difference is averaged, from the second token on.
        lens_file: File with unrelated texts (JSON lines or plain text); empty takes random token sequences.
        batch_tokens: Largest number of tokens in a forward pass, padding included.
        draws: Bootstrap draws of each interval.
        text: How the texts of ``lens_file`` become token ids; a run sets it once, in its section ``text``.
        seed: Seed of every random draw.
    """

    base: str = "base"
    checkpoints: str = ""
    max_prompts: int | None = Field(default=None, ge=1)
    operators: str = OPERATORS
    procedural: tuple[str, ...] = PROCEDURAL
    top: int = Field(default=10, ge=1)
    positions: int = Field(default=512, ge=8)
    lens_texts: int = Field(default=64, ge=0)
    lens_positions: int = Field(default=4, ge=1)
    lens_file: str = ""
    batch_tokens: int = Field(default=4096, ge=1)
    draws: int = Field(default=1000, ge=100)
    text: TextConfig = TextConfig()
    seed: int = Field(default=0, ge=0)
