"""The result of one arm: the typed content of ``posttrain.json``."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mechprobe.environment import require
from mechprobe.results import IntervalNumbers, Number, Result

if TYPE_CHECKING:
    import pandas as pd

RESULT_FILE = "posttrain.json"


class PromptsSeen(Result):
    """Which prompts an arm saw. Arms with equal hashes read the same prompts in the same order.

    Attributes:
        file: Name of the file.
        n: Number of prompts in it.
        sha256: Hash of ids and token ids of all prompts.
        order_sha256: Hash of the order of two passes.
        per_step: Prompts of a step; step s takes visits ``s * per_step`` and following.
        visits: Number of visits of the training.
        left_out: Prompts without a right sample, which on-policy SFT skips.
    """

    file: str
    n: int
    sha256: str
    order_sha256: str
    per_step: int
    visits: int
    left_out: int = 0


class OnPolicy(Result):
    """The samples of the base for on-policy SFT.

    Attributes:
        n: Samples of each prompt.
        right: Share of right samples.
        prompts_with_right: Number of prompts with a right sample.
    """

    n: int
    right: Number
    prompts_with_right: int


class KlMatch(Result):
    """Divergence from base of this arm and of the arm whose it stops at, in nats per token.

    Attributes:
        run: Name of the other arm.
        target: Its divergence.
        course: ``(step, divergence)`` of this arm at every measurement.
        reached: Whether this arm came to the target.
        n_prompts: Number of prompts on which both were measured.
    """

    run: str
    target: IntervalNumbers
    course: tuple[tuple[int, IntervalNumbers], ...]
    reached: bool
    n_prompts: int


class TokensSeen(Result):
    """Tokens that an arm has read after a step, over all processes and without padding; a repeated token counts each time.

    Attributes:
        step: Number of finished optimizer steps.
        n: Tokens of prompts and responses, as TRL's ``num_tokens``.
        n_loss: Tokens of responses, end token included, over which the loss is a mean.
    """

    step: int
    n: int
    n_loss: int


class PosttrainResult(Result):
    """One arm of post-training.

    Attributes:
        arm: Name of the arm and of its folder.
        method: ``sft`` or ``grpo``.
        steps: Steps that were trained.
        planned: Steps that were asked for; more than ``steps`` where SFT stopped at a divergence.
        checkpoints: Steps of the models in ``step_<n>/``; the last model is the folder itself.
        n_parameters, n_trained: Number of parameters, and of those that were trained.
        prompts: Which prompts it saw.
        curve: What the trainer logged at every step.
        on_policy: Where the responses of on-policy SFT come from.
        kl: Where matched SFT stopped.
        tokens: Tokens read at every checkpoint and at the last step; empty in results of earlier versions.
    """

    arm: str
    method: Literal["sft", "grpo"]
    steps: int
    planned: int
    checkpoints: tuple[int, ...]
    n_parameters: int
    n_trained: int
    prompts: PromptsSeen
    curve: tuple[dict[str, Number], ...]
    on_policy: OnPolicy | None = None
    kl: KlMatch | None = None
    tokens: tuple[TokensSeen, ...] = ()

    @classmethod
    def load(cls, path: Path | str) -> "PosttrainResult":
        """Read the result in the folder of an arm, or a file.

        Raises:
            ArtifactError: It is missing or damaged.
        """
        place = Path(path)
        return super().load(place / RESULT_FILE if place.is_dir() else place)

    def __repr__(self) -> str:
        return f"PosttrainResult({self.arm!r}, {self.method}, {self.steps} steps, checkpoints {self.checkpoints})"

    def models(self, folder: Path | str) -> dict[str, str]:
        """Name and folder of every model of the arm in ``folder``, as `ModelFamily.load` takes them."""
        place = Path(folder)
        kept = {f"{self.arm}@{step_name(step)}": str(place / step_name(step)) for step in self.checkpoints}
        return {**kept, self.arm: str(place)}

    def to_pandas(self) -> "pd.DataFrame":
        """The curve, one row for each step."""
        return require("pandas", "A data frame").DataFrame(list(self.curve))


CHECKPOINT = re.compile(r"step_\d+")
"""Names of the folders of checkpoints, as `step_name` makes them."""


def step_name(step: int) -> str:
    """Name of the folder of a checkpoint."""
    return f"step_{step:06d}"
