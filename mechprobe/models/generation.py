"""Batched generation with a plain transformers model: left padding, KV cache, greedy or seeded sampling."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby, takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from mechprobe.errors import InputError, ModelError
from mechprobe.memory import in_parts
from mechprobe.models.architectures import plain_generate, require_generation
from mechprobe.models.devices import input_device
from mechprobe.models.load import LanguageModel, context_of
from mechprobe.models.sampling import (
    CountedTokens,
    FiniteLogits,
    ForcedTokens,
    KnownTokens,
    ReadLogProbs,
    SeededSampling,
    StopTexts,
    cut_at_stop,
    response_seed,
)
from mechprobe.models.tokenizers import require_ids
from mechprobe.progress import progress
from mechprobe.ranks import in_turns
from mechprobe.types import Finish

MOST_LOGITS = 1 << 26
"""Logits of last positions that exist at a time (256 MiB in float32); transformers keeps a few copies of them."""


@dataclass(frozen=True, slots=True)
class Generated:
    """One response, without the token or the stop text that ended it.

    Attributes:
        text: Text of the response, without special tokens.
        token_ids: Token ids of the response.
        finish: ``stop``: an end token or a stop text ended it; ``length``: the limit cut it.
        written: Every token that the model wrote, with the end token, or with those of the stop text.
    """

    text: str
    token_ids: tuple[int, ...]
    finish: Finish = "stop"
    written: tuple[int, ...] = ()


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str | Sequence[int]], *, max_length: int, prefix: str = ""
) -> list[list[int]]:
    """Tokenize texts with special tokens (token ids stay as they are), and append ``prefix``, which begins the response.

    Raises:
        InputError: A prompt is empty, or longer than ``max_length`` tokens.
    """
    extra = tokenizer(prefix, add_special_tokens=False).input_ids if prefix else []
    encoded = []
    for index, prompt in enumerate(prompts):
        ids = [*(tokenizer(prompt).input_ids if isinstance(prompt, str) else prompt), *extra]
        if not ids:
            raise InputError(f"Prompt {index} ({prompt[:40]!r}) has no tokens; remove it.")
        if len(ids) > max_length:
            raise InputError(
                f"Prompt {index} ({prompt[:40]!r}) has {len(ids)} tokens, but the context has room for {max_length}; "
                "shorten it, or lower max_new_tokens."
            )
        encoded.append(ids)
    return encoded


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of the tokens that end a response, from the config of the model and from the tokenizer."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*ids, tokenizer.eos_token_id] if token is not None})


def length_batches(lengths: Sequence[int], batch_size: int, *, equal: bool = False) -> Iterator[list[int]]:
    """Yield indices in batches of similar, or of ``equal`` length; the batches depend on the lengths only."""
    order = sorted(range(len(lengths)), key=lambda index: (lengths[index], index))
    groups = groupby(order, key=lambda index: lengths[index]) if equal else [(0, order)]
    for group in (list(members) for _, members in groups):
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


def left_pad(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str, *, width: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad rows of token ids on the left, to ``width`` or the longest; return ``(ids, attention_mask)``, ``[batch pos]`` int64."""
    width = max(len(row) for row in rows) if width is None else width
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row, dtype=torch.int64)
        mask[index, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


@torch.no_grad()
def generate(  # noqa: PLR0913 - the promised entry point; all but three are keyword options
    model: PreTrainedModel | LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str | Sequence[int]],
    *,
    max_new_tokens: int = 64,
    batch_size: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    n: int = 1,
    prefix: str = "",
    stop: Sequence[str] = (),
    end_ids: Sequence[int] | None = None,
) -> list[Generated]:
    """Generate ``n`` responses to every prompt, in the given order; the responses to one prompt follow each other.

    Each sampled response has its own seed, which depends on ``seed``, the token ids of the prompt and the index of the draw.
    Neither the batch nor the order of the prompts therefore changes the random numbers of a response. Logits differ in their
    last bits between batches, so a token can still change where two are nearly equally likely. A prompt given twice gets other
    draws the second time.

    Args:
        model: A `LanguageModel`, or a plain transformers model; hooks on it (`mechprobe.interventions.edited`) take effect.
        tokenizer: Tokenizer of the model, with a pad token. Ids that it has no token for are never generated.
        prompts: Texts, to which the tokenizer adds its special tokens, or token ids, which are used as they are.
        max_new_tokens: Longest response, in tokens.
        batch_size: Number of responses in a batch; prompts of similar length are batched together.
        temperature: Sampling temperature; 0 means greedy decoding.
        top_p: Probability mass that sampling keeps.
        top_k: Number of most probable tokens that sampling keeps; 0 keeps all.
        seed: Seed of the sampling. The global random state is not used.
        n: Number of responses to every prompt; more than one needs a temperature.
        prefix: Forced beginning of every response; it is part of the returned text.
        stop: Texts that end a response; they are not part of it.
        end_ids: Tokens that end a response; by default those of the `LanguageModel`, or of model and tokenizer.

    Raises:
        InputError: A prompt is empty, does not leave ``max_new_tokens`` in the context, or contains an id without embedding; a
            stop text is empty; or several greedy responses are requested.
        ModelError: Logits are not finite, or the architecture does not generate exactly.
    """
    if n > 1 and temperature <= 0:
        raise InputError(f"{n} greedy responses to one prompt are all the same; give a temperature above 0, or n = 1.")
    if "" in stop:
        raise InputError("A stop text is empty; remove it.")
    asked = Asked.of(model, tokenizer, end_ids)
    room = context_of(asked.hf.config) - max_new_tokens
    encoded = encode_prompts(tokenizer, prompts, max_length=room, prefix=prefix)
    for index, row in enumerate(encoded):
        require_ids(row, asked.n_embedded, tokenizer, f"Prompt {index}")
    n_prefix = len(tokenizer(prefix, add_special_tokens=False).input_ids) if prefix else 0
    rows = [ids for ids in encoded for _ in range(n)]
    seeds = response_seeds(rows, seed) if temperature > 0 else []
    results: list[Generated | None] = [None] * len(rows)
    equal = not require_generation(asked.hf, asked.name).padding
    sampled = partial(SeededSampling, device=asked.device, temperature=temperature, top_p=top_p, top_k=top_k)
    batches = list(length_batches([len(row) for row in rows], batch_size, equal=equal))

    def responses(batch: list[int]) -> list[list[int]]:
        ids, mask = left_pad([rows[index] for index in batch], asked.pad_id, asked.device)

        def respond(part: slice) -> list[list[int]]:
            choice = [sampled([seeds[index] for index in batch[part]])] if seeds else []
            return _respond(asked, (ids[part], mask[part]), max_new_tokens, n_prefix, choice, stop)

        most = max(1, MOST_LOGITS // asked.n_embedded)
        parts = in_parts(respond, len(batch), most=most, what="Generation", unit="responses")
        return list(chain.from_iterable(parts))

    with progress(len(rows), f"generation by {asked.name}", unit="responses", inner=True) as advance:
        for batch, found in zip(batches, in_turns(responses, batches), strict=True):
            for index, tokens in zip(batch, found, strict=True):
                results[index] = asked.finished(tokens, stop, n_prefix)
            advance(len(batch))
    return [result for result in results if result is not None]


def response_seeds(rows: Sequence[Sequence[int]], seed: int) -> list[int]:
    """Seed of every row; equal rows get the draws 0, 1, 2 and so on."""
    seen: Counter[tuple[int, ...]] = Counter()
    seeds = []
    for row in map(tuple, rows):
        seeds.append(response_seed(seed, row, seen[row]))
        seen[row] += 1
    return seeds


@dataclass(frozen=True)
class Asked:
    """The model that responds, and which tokens it may write.

    Attributes:
        hf, tokenizer, name, device: The transformers model, its tokenizer, its name in messages, and where its inputs go.
        ends: Tokens that end a response.
        n_embedded, n_token_ids: Number of ids with a row in the embedding, and of ids that may be written.
        pad_id: Token that fills padding.
    """

    hf: Any
    tokenizer: PreTrainedTokenizerBase
    name: str
    ends: tuple[int, ...]
    n_embedded: int
    n_token_ids: int
    pad_id: int
    device: torch.device

    @classmethod
    def of(
        cls, model: PreTrainedModel | LanguageModel, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int] | None
    ) -> "Asked":
        """A model with its tokenizer; ``end_ids`` are those of `generate`."""
        if isinstance(model, LanguageModel):
            hf, name, ends, limit = model.hf, model.name, model.end_ids, model.n_token_ids
        else:
            hf, name = model, f"{type(model).__name__} {model.name_or_path}".strip()
            ends, limit = end_token_ids(model, tokenizer), n_embedding_rows(model)
        ends = tuple(ends if end_ids is None else end_ids)
        known = min(limit, len(tokenizer))
        return cls(hf, tokenizer, name, ends, limit, known, pad_id_of(hf, tokenizer), input_device(hf))

    def finished(self, tokens: Sequence[int], stop: Sequence[str], n_prefix: int = 0) -> Generated:
        """The response with these tokens, which may go on after its end; ``n_prefix`` of them were forced."""
        kept = list(takewhile(lambda token: token not in self.ends, tokens))
        text, ids, stopped = cut_at_stop(self.tokenizer, kept, stop, n_prefix=n_prefix)
        written = tokens[: len(kept) + 1]
        if stopped:
            ends = (
                n
                for n in range(len(ids), len(kept))
                if cut_at_stop(self.tokenizer, kept[:n], stop, n_prefix=n_prefix)[2]
            )
            written = kept[: next(ends, len(kept))]
        finish: Finish = "stop" if stopped or len(kept) < len(tokens) else "length"
        return Generated(text, ids, finish, tuple(written))


def _respond(
    asked: Asked,
    batch: tuple[Tensor, Tensor],
    max_new_tokens: int,
    n_prefix: int,
    choice: Sequence[LogitsProcessor],
    stop: Sequence[str],
) -> list[list[int]]:
    """Token ids of the responses to one batch ``(ids, mask)``, each with its forced beginning and with what follows its end."""
    ids, mask = batch
    start, finite = ids.shape[1] - n_prefix, FiniteLogits()
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(asked.ends) or None,
        pad_token_id=asked.pad_id,
        use_cache=True,
        do_sample=False,
    )
    stopping = [StopTexts(asked.tokenizer, stop, start=start, n_prefix=n_prefix)] if stop else []
    known = KnownTokens(asked.n_token_ids, asked.ends)
    with progress(max_new_tokens, f"batch of {len(ids)}", unit="tokens", inner=True) as advance:
        output = plain_generate(
            asked.hf,
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([CountedTokens(advance), finite, known, *choice]),
            stopping_criteria=StoppingCriteriaList(stopping),
        )
    if finite.found:
        raise not_finite(asked.name, asked.hf.dtype)
    return output[:, start:].tolist()


def not_finite(name: str, dtype: torch.dtype) -> ModelError:
    """The error for logits that are NaN or infinite."""
    kind = str(dtype).removeprefix("torch.")
    others = " or ".join(other for other in ("bfloat16", "float32") if other != kind)
    mend = "check its weights" if kind == "float32" else f"load it in {others}, or check its weights"
    return ModelError(f"Logits of {name} are not finite in {kind}; {mend}.")


def n_embedding_rows(model: PreTrainedModel) -> int:
    """Number of token ids that have a row in the embedding."""
    weight: Any = model.get_input_embeddings().weight
    return int(weight.shape[0])


def pad_id_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Id that fills padding: the tokenizer's, or 0 where the embedding has no row for that. Padding is masked."""
    pad_id = int(str(tokenizer.pad_token_id))
    return pad_id if pad_id < n_embedding_rows(model) else 0


@torch.no_grad()
def forced_log_probs(
    model: LanguageModel, rows: Sequence[tuple[Sequence[int], Sequence[int]]], last: Sequence[Sequence[int]]
) -> list[tuple[list[float], list[float]]]:
    """Log-probabilities in nats of the further tokens of each row ``(prompt ids, further ids)``, and of ``last`` after them.

    The further tokens are generated by force, so caches, padding and edits act exactly as in generation. All rows have equally
    many further tokens. Logits exist for one position of each row at a time.

    Raises:
        ModelError: Logits are not finite, or the architecture does not generate exactly.
    """
    require_generation(model.hf, model.name)
    ids, mask = left_pad([prompt for prompt, _ in rows], model.pad_id, input_device(model.hf))
    forced = torch.tensor([list(rest) for _, rest in rows], dtype=torch.int64, device=ids.device)

    def read(part: slice) -> list[tuple[list[float], list[float]]]:
        finite, reader = FiniteLogits(), ReadLogProbs(forced[part], last[part], start=ids.shape[1])
        config = GenerationConfig(
            max_new_tokens=forced.shape[1] + 1, pad_token_id=model.pad_id, use_cache=True, do_sample=False
        )
        processors = LogitsProcessorList([finite, reader, ForcedTokens(forced[part], start=ids.shape[1])])
        plain_generate(
            model.hf,
            input_ids=ids[part],
            attention_mask=mask[part],
            generation_config=config,
            logits_processor=processors,
        )
        if finite.found:
            raise not_finite(model.name, model.hf.dtype)
        return reader.found()

    most = max(1, MOST_LOGITS // n_embedding_rows(model.hf))
    return list(chain.from_iterable(in_parts(read, len(rows), most=most, what="Log-likelihoods", unit="prompts")))
