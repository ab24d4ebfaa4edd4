"""A local causal language model as judge: by the log-probabilities of yes and no, or by the word that it writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mechprobe.data.config import TextConfig
from mechprobe.data.encoding import Ids, PromptEncoder
from mechprobe.data.prompts import Prompt
from mechprobe.errors import ConfigError, InputError
from mechprobe.evals.answering import log_likelihoods
from mechprobe.evals.judging.config import JudgeConfig
from mechprobe.evals.judging.judge import Judge, Judged, Verdict, filled, read_verdict
from mechprobe.models.generation import generate
from mechprobe.models.load import LanguageModel


class ModelJudge(Judge):
    """Judges with a causal language model of transformers. A text longer than its context is refused, never cut."""

    def __init__(self, config: JudgeConfig, *, device: str = "cpu", trust_remote_code: bool = False) -> None:
        super().__init__(config)
        self.model = LanguageModel(
            "judge", config.model, device=device, dtype=config.dtype, trust_remote_code=trust_remote_code
        )
        rule = TextConfig(chat_template=True) if config.chat_template else TextConfig()
        self._encoder = PromptEncoder.of(self.model.tokenizers, rule)
        if config.by == "logits":
            self._words(Prompt("The template of the judge", config.template))

    @property
    def identity(self) -> dict[str, Any]:
        """Fingerprint of the model, and how it is asked."""
        asked = ("template", "reads", "by", "yes", "no", "scale", "max_new_tokens", "dtype", "chat_template")
        return {"model": self.model.fingerprint, **self.config.model_dump(mode="json", include=set(asked))}

    def verdicts(self, judged: Sequence[Judged], folder: Path) -> list[Verdict]:
        """The verdicts; a tie of the log-probabilities, or a text without a single verdict, is undecided."""
        del folder
        prompts = [Prompt(one.where, filled(self.config.template, one)) for one in judged]
        if not prompts:
            return []
        return self._by_logits(prompts) if self.config.by == "logits" else self._by_word(prompts)

    def _by_logits(self, prompts: Sequence[Prompt]) -> list[Verdict]:
        pairs: list[tuple[Ids, Ids]] = []
        for prompt in prompts:
            both = self._words(prompt)
            self._check(prompt, max(len(context) + len(rest) for context, rest in both))
            pairs += both
        found = log_likelihoods(self.model, pairs, batch_size=self.config.batch_size)
        return [None if yes == no else float(yes > no) for yes, no in zip(found[::2], found[1::2], strict=True)]

    def _words(self, prompt: Prompt) -> list[tuple[Ids, Ids]]:
        """Token ids of a text and of each of the two words behind it."""
        both = [self._encoder.encode_pair(prompt, word) for word in (self.config.yes, self.config.no)]
        if both[0][1] == both[1][1]:
            raise ConfigError("judge.yes and judge.no have the same tokens for this judge; change one of them.")
        return both

    def _by_word(self, prompts: Sequence[Prompt]) -> list[Verdict]:
        ids = [self._encoder.encode(prompt) for prompt in prompts]
        for prompt, row in zip(prompts, ids, strict=True):
            self._check(prompt, len(row) + self.config.max_new_tokens)
        limit, size = self.config.max_new_tokens, self.config.batch_size
        written = generate(self.model, self._encoder.tokenizer, ids, max_new_tokens=limit, batch_size=size)
        return [
            read_verdict(one.text, self.config.reads, self.config.scale, cut=one.finish == "length") for one in written
        ]

    def _check(self, prompt: Prompt, length: int) -> None:
        if length > self.model.max_context:
            raise InputError(
                f"{prompt.id} has {length} tokens in the judge's template, with the verdict, but the context of the judge holds "
                f"{self.model.max_context}; lower max_new_tokens of the benchmark, or take a judge with a longer context."
            )

    def release(self) -> None:
        """Free the weights."""
        self.model.release()
