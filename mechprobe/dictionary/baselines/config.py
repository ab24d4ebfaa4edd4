"""Settings of ``mechprobe baselines``; what is None is taken from the crosscoder."""

from pydantic import Field

from mechprobe.config import FrozenConfig


class BaselinesConfig(FrozenConfig):
    """How the SAE of each model is trained. None takes the crosscoder's own value, so that the two are comparable.

    Attributes:
        d_sae: Features of each SAE.
        k: Features active per token; for a crosscoder without k, its held-out L0.
        n_tokens: Tokens to train on.
        batch_size: Tokens a step.
        lr: Peak learning rate.
        seed: Of the SAEs' weights; the rows come in the crosscoder's order.
        decoder_init_norm: Norm of every decoder at the start.
        saes: Folders of SAEs saved by sae-lens, by model: taken instead of training one.
    """

    d_sae: int | None = Field(default=None, ge=1)
    k: int | None = Field(default=None, ge=1)
    n_tokens: int | None = Field(default=None, ge=1)
    batch_size: int | None = Field(default=None, ge=1)
    lr: float | None = Field(default=None, gt=0)
    seed: int = Field(default=0, ge=0)
    decoder_init_norm: float = Field(default=1.0, gt=0)
    saes: dict[str, str] = Field(default_factory=dict)
