"""The activation-difference lens (arXiv 2510.13900): what the difference of two models at the start of unrelated text promotes.

For every layer, the residual of base is subtracted from that of the tuned model and averaged over texts and over their first
positions. The mean goes through the tuned model's final norm and unembedding. The first token of a text is left out, because
its residual is an attention sink in many models (ours). Without ``drift.lens_file`` the texts are random token sequences (ours;
the paper takes web text), so that nothing in them can name what was trained.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechprobe.cache.harvest.forward_batches import forward_batches, padded
from mechprobe.data.encoding import PromptEncoder
from mechprobe.data.stream import TokenStream
from mechprobe.data.tokens import special_token_ids
from mechprobe.drift.divergence.config import DriftConfig
from mechprobe.drift.divergence.result import LensRow, LensToken
from mechprobe.errors import InputError
from mechprobe.features.examples.promoted import TokenEffect, promoted_tokens
from mechprobe.interventions.collateral import texts_of_file
from mechprobe.models.family import ModelFamily
from mechprobe.models.load import LanguageModel
from mechprobe.models.residuals import residuals_plain

Texts = Sequence[tuple[int, ...]]


def lens_texts(family: ModelFamily, stream: TokenStream, config: DriftConfig, n_ids: int) -> tuple[Texts, str]:
    """The unrelated texts as token ids, cut after the last position that is read, and what they are, in words.

    Raises:
        InputError: The file cannot be used, or every text in it is shorter than two tokens.
    """
    length = config.lens_positions + 1
    if config.lens_file:
        encoder = PromptEncoder.of(family.tokenizers, config.text)
        found = texts_of_file(config.lens_file, encoder, config.lens_texts)
        texts = [ids[:length] for ids in found.sequences]
        if max(map(max, texts)) >= n_ids:
            raise InputError(f"{config.lens_file} holds a token without an embedding in every model; remove that text.")
        return texts, found.source
    tokenizer = family.tokenizer
    bos: Any = tokenizer.bos_token_id
    begins = (bos,) if bos is not None and stream.sequences[0].ids[0] == bos else ()
    known = np.array(sorted(set(tokenizer.get_vocab().values()) - set(special_token_ids(tokenizer))))
    drawn: list[list[int]] = (
        np.random.default_rng([config.seed, 2]).choice(known[known < n_ids], (config.lens_texts, length)).tolist()
    )
    return [(*begins, *row)[:length] for row in drawn], f"{config.lens_texts} random token sequences"


@torch.no_grad()
def first_residuals(model: LanguageModel, texts: Texts, batch_tokens: int) -> Float[Tensor, "text layer d_model"]:
    """Mean residual of each text over its positions but the first, at every layer, in float32 on the CPU."""
    sites = _sites(model)
    found: list[Tensor | None] = [None] * len(texts)
    for batch in forward_batches([len(ids) for ids in texts], batch_tokens):
        ids, mask = padded([texts[index] for index in batch], model.pad_id)
        _ = model.hf  # with a device map the input device is known once the weights are loaded
        resid = residuals_plain(model, ids.to(model.input_device), mask, sites)
        mask[:, 0] = 0
        for row, index in enumerate(batch):
            kept = mask[row].bool()
            found[index] = torch.stack([resid[site][row].float().cpu()[kept].mean(0) for site in sites])
    return torch.stack([each for each in found if each is not None])


def _sites(model: LanguageModel) -> list[Any]:
    from mechprobe.types import Site

    return [Site(layer) for layer in range(model.n_layers)]


def lens_rows(
    model: LanguageModel,
    tuned: Float[Tensor, "text layer d_model"],
    base: Float[Tensor, "text layer d_model"],
    tokenizer: Any,
    top: int,
) -> list[LensRow]:
    """The lens of every layer.

    Raises:
        ModelError: The final norm or the unembedding of the model has an unknown form.
    """
    each = tuned.double() - base.double()
    mean = each.mean(0)
    size = base.double().norm(dim=-1).mean(0)
    energy = each.square().sum(-1).mean(0)
    promoted = promoted_tokens(model, mean.float(), tokenizer, n=top)
    return [
        LensRow(
            model=model.name,
            layer=layer,
            relative_norm=float(mean[layer].norm() / size[layer]),
            consistency=float(mean[layer].square().sum() / energy[layer]) if energy[layer] > 0 else float("nan"),
            promoted=_tokens(promoted[layer].promoted),
            suppressed=_tokens(promoted[layer].suppressed),
            n=len(each),
        )
        for layer in range(len(mean))
    ]


def _tokens(effects: Sequence[TokenEffect]) -> tuple[LensToken, ...]:
    return tuple(LensToken(token=effect.token, id=effect.id, value=effect.value) for effect in effects)
