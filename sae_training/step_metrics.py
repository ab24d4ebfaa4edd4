"""The measures of one training step: a line of ``metrics.jsonl``."""

import math
from typing import Any

from sae_training.checkpoint import TrainState
from sae_training.crosscoder import Crosscoder
from sae_training.parallel import Division
from sae_training.reconstruction import batch_fve
from sae_training.step import StepOutput
from sae_training.train_config import TrainConfig


def step_metrics(
    output: StepOutput,
    crosscoder: Crosscoder,
    state: TrainState,
    config: TrainConfig,
    n_before: int,
    division: Division,
) -> dict[str, Any]:
    """Measures of the latest step; waits for the device.

    Args:
        output: Result of the step on its last batch.
        crosscoder: The crosscoder after the step.
        state: The state after the step.
        config: Settings of the training.
        n_before: Number of tokens trained on before the step.
        division: The processes that divide the training; all of them call this.
    """
    fve = batch_fve(output.x, output.error, crosscoder.config.widths, division, output.n_rows)
    l0 = float(division.sum_(output.active.column_count().sum())) / output.n_rows
    since, threshold = (
        division.of_all_latents(each, crosscoder.d_sae) if each.ndim else each
        for each in (state.tokens_since_fired, crosscoder.threshold)
    )
    return {
        "step": state.step,
        "tokens": state.n_tokens,
        "lr": config.lr_at(n_before),
        "loss": float(output.loss),
        "mse": float(output.mse),
        "aux": float(output.aux),
        "penalty": float(output.penalty),
        **({"delta": float(output.delta)} if config.delta_coefficient else {}),
        "l1_coefficient": config.l1_at(n_before) if crosscoder.variant.has_l1_penalty else 0.0,
        **({"l0_coefficient": config.l0_at(n_before)} if crosscoder.variant.has_latent_threshold else {}),
        "l0": l0,
        "fve": {  # None if a model's activation is constant in the batch, because JSON has no NaN
            name: value if math.isfinite(value) else None
            for name, value in zip(crosscoder.source_names, fve.tolist(), strict=True)
        },
        "dead_frac": float((since >= config.dead_window).double().mean()),
        "threshold": float(threshold.mean()),
        "distinct_batches": int(state.settle_digests().unique().numel()),
    }
