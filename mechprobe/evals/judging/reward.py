"""Reward models: sequence classifiers with one output, whose raw logit scores a response."""

from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from typing import Any

from mechprobe.errors import InputError, ModelError, first_line, is_out_of_memory
from mechprobe.evals.judging.config import RewardConfig
from mechprobe.evals.judging.judge import Judged
from mechprobe.memory import free_memory, in_parts
from mechprobe.models.checkpoint import stored_tensors
from mechprobe.models.checkpoint_fit import quietly, refuse_misfit, refuse_non_finite
from mechprobe.models.folder import find_model
from mechprobe.models.generation import length_batches
from mechprobe.models.load import context_of
from mechprobe.models.tokenizers import load_tokenizer
from mechprobe.ranks import in_turns

ROLE = "reward"
_SAME = 1e-5
"""Largest difference of a reward with and without padding, as a share of 1 + its size."""


class RewardModel:
    """Scores responses with a sequence classifier of transformers.

    Texts of a batch are padded on the right with a token that none of them contains. So transformers, which takes the last token
    that is no padding, finds the true last token even where padding and end token are one, and positions count from the first
    token of each text. Before the first batch the model is tried with and without padding; where rewards differ, for instance
    because an architecture reads its state behind the padding, only texts of equal length share a batch.
    """

    def __init__(self, config: RewardConfig, *, device: str = "cpu", trust_remote_code: bool = False) -> None:
        """Find and check the model; weights are loaded on first use.

        Raises:
            ModelError: It is no sequence classifier with one output.
        """
        from transformers import AutoConfig

        self.config, self.device, self._trust = config, device, trust_remote_code
        self.folder = find_model(config.model, role=ROLE, trust_remote_code=trust_remote_code)
        if self.folder.base is not None:
            raise ModelError(f"{config.model} is an adapter; merge it into its base and give the merged reward model.")
        self.tokenizer = load_tokenizer(self.folder.tokenizer, role=ROLE, trust_remote_code=trust_remote_code)
        with quietly():
            self._hf_config = AutoConfig.from_pretrained(self.folder.path, trust_remote_code=trust_remote_code)
        names = list(getattr(self._hf_config, "architectures", None) or ())
        if not any("SequenceClassification" in name or "Reward" in name for name in names):
            raise ModelError(
                f"{config.model} is no sequence classifier (its config names {', '.join(names) or 'no architecture'}), so its "
                "reward would come from random weights; give a reward model."
            )
        if self._hf_config.num_labels != 1:
            raise ModelError(
                f"{config.model} has {self._hf_config.num_labels} outputs, and a reward is one number; give a model with one label."
            )
        if config.form == "chat" and not self.tokenizer.chat_template:
            raise ModelError(f'The tokenizer of {config.model} has no chat template; set reward.form = "pair".')

    @property
    def identity(self) -> dict[str, Any]:
        """Fingerprint, form and dtype."""
        return {"model": self.folder.fingerprint, "form": self.form, "dtype": self.config.dtype}

    @property
    def form(self) -> str:
        """How question and response become one text, ``chat`` or ``pair``."""
        if self.config.form != "auto":
            return self.config.form
        return "chat" if self.tokenizer.chat_template else "pair"

    @property
    def context(self) -> int:
        """Longest text in tokens. Models of the RoBERTa kind count positions from behind the padding id."""
        shift = "roberta" in self._hf_config.model_type or self._hf_config.model_type in ("camembert", "longformer")
        return context_of(self._hf_config) - ((self._hf_config.pad_token_id or 0) + 1 if shift else 0)

    def rewards(self, judged: Sequence[Judged]) -> list[float]:
        """The raw logit of every response, in the given order; it does not depend on the batch size.

        Raises:
            InputError: A text is longer than the context of the model; nothing is cut.
            ModelError: A reward is not finite.
        """
        rows = [self._row(one) for one in judged]
        result = [0.0] * len(rows)
        if not rows:
            return result
        batches = length_batches([len(ids) for ids, _ in rows], self.config.batch_size, equal=not self._pads)

        def scores(batch: Sequence[int]) -> list[float]:
            width = max(len(rows[index][0]) for index in batch)
            found = in_parts(
                lambda part: self._scores([rows[index] for index in batch[part]], width=width),
                len(batch),
                what="Rewards",
                unit="responses",
            )
            return list(chain.from_iterable(found))

        for batch, values in zip(batches, in_turns(scores, batches), strict=True):
            for index, value in zip(batch, values, strict=True):
                result[index] = value
        bad = next((one for one, value in zip(judged, result, strict=True) if not abs(value) < float("inf")), None)
        if bad is not None:
            raise ModelError(
                f"{bad.where} has a reward that is not finite in {self.config.dtype}; set reward.dtype = 'float32'."
            )
        return result

    def _row(self, judged: Judged) -> tuple[list[int], list[int]]:
        """Token ids of a question and its response, and the types of the tokens where the tokenizer gives them."""
        messages = list(judged.sample.messages or ({"role": "user", "content": judged.sample.prompt},))
        if self.form == "chat":
            conversation: Any = [*messages, {"role": "assistant", "content": judged.text}]
            text = str(self.tokenizer.apply_chat_template(conversation, tokenize=False))
            found = self.tokenizer(text, add_special_tokens=False)
        else:
            found = self.tokenizer(judged.sample.prompt, judged.text)
        ids = list(found.input_ids)
        if len(ids) > self.context:
            raise InputError(
                f"{judged.where} has {len(ids)} tokens with its question, but the context of the reward model holds {self.context}; "
                "lower max_new_tokens of the benchmark, or take a reward model with a longer context."
            )
        return ids, list(found.get("token_type_ids", ()))

    def _scores(self, rows: Sequence[tuple[list[int], list[int]]], *, width: int = 0) -> list[float]:
        """Rewards of one batch; ``width`` pads further than the longest row needs."""
        import torch

        longest = max(width, *(len(ids) for ids, _ in rows))
        pad = self._free_id({token for ids, _ in rows for token in ids})
        shape = (len(rows), longest)
        ids, mask, types = (
            torch.full(shape, pad),
            torch.zeros(shape, dtype=torch.int64),
            torch.zeros(shape, dtype=torch.int64),
        )
        for index, (own, own_types) in enumerate(rows):
            ids[index, : len(own)] = torch.tensor(own)
            mask[index, : len(own)] = 1
            types[index, : len(own_types)] = torch.tensor(own_types, dtype=torch.int64)
        inputs = {"input_ids": ids, "attention_mask": mask} | ({"token_type_ids": types} if rows[0][1] else {})
        self._model.config.pad_token_id = self._model.config.get_text_config().pad_token_id = pad
        with torch.no_grad():
            logits = self._model(**{name: value.to(self.device) for name, value in inputs.items()}).logits
        return [float(value) for value in logits[:, 0].float()]

    def _free_id(self, used: set[int]) -> int:
        """An id that no text of the batch has: the padding token, or the first other one."""
        own = self.tokenizer.pad_token_id
        if isinstance(own, int) and own not in used and own < self._n_rows:
            return own
        return next(token for token in range(self._n_rows) if token not in used)

    @cached_property
    def _n_rows(self) -> int:
        return int(self._hf_config.get_text_config().vocab_size)

    @cached_property
    def _pads(self) -> bool:
        """Whether padding leaves the rewards as they are."""
        tokens = [token for token in range(self._n_rows) if token not in self.tokenizer.all_special_ids]
        row = (tokens[: min(5, len(tokens))], [])
        alone, padded = self._scores([row])[0], self._scores([row], width=min(len(row[0]) + 4, self.context))[0]
        return abs(alone - padded) <= _SAME * (1 + abs(alone))

    @cached_property
    def _model(self) -> Any:
        import torch
        from transformers import AutoModelForSequenceClassification

        path = self.folder.path
        try:
            with quietly():
                loaded: Any = AutoModelForSequenceClassification.from_pretrained(
                    path,
                    dtype=getattr(torch, self.config.dtype),
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    trust_remote_code=self._trust,
                )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(
                f"{path} cannot be loaded as a sequence classifier ({first_line(error)}); check the folder."
            ) from None
        model, info = loaded
        refuse_misfit(model, info, stored_tensors(path, role=ROLE), role=ROLE, path=path)
        refuse_non_finite(model, role=ROLE, path=path, dtype=self.config.dtype)
        return model.requires_grad_(False).to(self.device).eval()

    def release(self) -> None:
        """Free the weights."""
        if self.__dict__.pop("_model", None) is not None:
            free_memory()
