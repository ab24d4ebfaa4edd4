"""Settings of ``mechprobe baselines``."""

from pydantic import Field

from mechprobe.config import FrozenConfig


class BaselinesConfig(FrozenConfig):
    """How the SAE of each model is trained. None takes the crosscoder's own value, which keeps the two comparable.

    Attributes:
        d_sae: Features of each SAE.
        k: Active features per token. A crosscoder without k gives its L0 on held-out rows.
        n_tokens: Tokens to train on.
        batch_size: Tokens per step.
        lr: Peak learning rate.
        seed: Seed of the SAEs' initial weights; the rows come in the crosscoder's order.
        decoder_init_norm: Initial norm of every decoder vector.
        saes: Folders of SAEs saved by sae-lens, by model; such a model's SAE is not trained.
    """

    d_sae: int | None = Field(default=None, ge=1)
    k: int | None = Field(default=None, ge=1)
    n_tokens: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    lr: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0)
    decoder_init_norm: float = Field(default=1.0, gt=0)
    saes: dict[str, str] = Field(default_factory=dict)
