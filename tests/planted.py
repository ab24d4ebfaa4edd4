"""A planted cause: rl is base plus one vector in one block's bias, with a dictionary that has a feature for it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mechprobe.evals.scorers.parse import scorer
from mechprobe.evals.tasks import Task
from mechprobe.models.family import ModelFamily
from mechprobe.models.generation import Asked, Generated, generate
from mechprobe.records import Sample
from sae_training import Crosscoder, CrosscoderConfig

SITE, LAYER, D, STRENGTH = "resid_post.1", 1, 32, 2.0


def saying(folder: Path, token: str | int) -> torch.Tensor:
    """The unit vector that makes a model say a token: the token's unembedding row minus the mean row."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = model.get_output_embeddings().weight.detach()
    row = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(token) if isinstance(token, str) else token
    vector = rows[row] - rows.mean(0)
    return vector / vector.norm()


def plant(folder: Path, direction: torch.Tensor) -> None:
    """Add the vector to the MLP bias of block `LAYER` in a saved GPT-NeoX model."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model.gpt_neox.layers[LAYER].mlp.dense_4h_to_h.bias.add_(STRENGTH * direction)
    model.save_pretrained(folder)


def cause_and_decoy(direction: torch.Tensor, names: Sequence[str], d_sae: int) -> Crosscoder:
    """ReLU dictionary over models whose first is base and whose last is rl.

    Feature 0 is the cause: it writes the vector in rl and nothing in the other models. Feature 1 correlates without causing: its
    activation differs most between the models, but it writes the same small vector in all of them. All models share the other
    features.
    """
    generator, n = torch.Generator().manual_seed(0), len(names)
    made = Crosscoder(CrosscoderConfig(n_models=n, d_model=D, d_sae=d_sae, k=4, variant="l1", model_names=tuple(names)))
    made.set_scale([1.0] * n)
    with torch.no_grad():
        made.b_dec_flat.zero_()
        shared = torch.randn(d_sae, D, generator=generator)
        made.decoder.copy_((STRENGTH / 3 * shared / shared.norm(dim=1, keepdim=True)).repeat(1, n))
        made.encoder.copy_(0.02 * torch.randn(d_sae, n * D, generator=generator))
        made.b_enc.fill_(0.2)
        made.encoder[:2].zero_()
        made.b_enc[0], made.b_enc[1] = 1.0, 0.0
        made.decoder[0].zero_()
        made.decoder[0, (n - 1) * D :] = STRENGTH * direction
        made.encoder[1, :D] = direction
        made.decoder[1] *= 0.1
    return made.eval()


def cause_in_the_difference(direction: torch.Tensor, d_sae: int) -> Crosscoder:
    """Dictionary of the difference rl − base whose feature 0 writes the planted vector; the others write nothing like it."""
    generator = torch.Generator().manual_seed(0)
    config = CrosscoderConfig(
        n_models=2, d_model=D, d_sae=d_sae, k=4, variant="l1", model_names=("base", "rl"), reads="difference"
    )
    made = Crosscoder(config)
    made.set_scale([1.0, 1.0])
    other = torch.randn(d_sae, D, generator=generator)
    other -= (other @ direction)[:, None] * direction
    own = STRENGTH * other / other.norm(dim=1, keepdim=True)
    read = torch.zeros(d_sae, D)
    own[0], read[0] = STRENGTH * direction, direction / STRENGTH
    with torch.no_grad():
        made.encoder.copy_(torch.cat([-read, read], dim=1))
        made.decoder.copy_(torch.cat([torch.zeros_like(own), own], dim=1))
        made.b_enc.fill_(0.002)
        made.b_enc[0] = 0.0
        made.b_dec_flat.zero_()
    return made.eval()


@contextmanager
def whole_at_the_limit() -> Iterator[None]:
    """Take responses of the full length for whole ones: the planted models never learned to end a response."""
    finished = Asked.finished

    def finished_whole(*args: Any, **kwargs: Any) -> Generated:
        return replace(finished(*args, **kwargs), finish="stop")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Asked, "finished", finished_whole)
        yield


def answered_by_rl(family: ModelFamily, name: str, form: str, n: int) -> Task:
    """A task whose right answers are the responses of rl."""
    prompts = [form.format(i, (7 * i) % 23) for i in range(n)]
    answers = generate(family["rl"].hf, family.tokenizer, prompts, max_new_tokens=2)
    samples = tuple(
        Sample(f"{name}-{i}", name, p, a.text)
        for i, (p, a) in enumerate(zip(prompts, answers, strict=True))
        if a.text.strip()
    )
    return Task(name, samples, scorer("exact"), 2)
