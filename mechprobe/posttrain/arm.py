"""One arm before its training: what it reads, what decides its result, and what it may not differ in from the arms beside it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from mechprobe.errors import ArtifactError, ConfigError, ModelError
from mechprobe.evals.scorers.parse import AnyScorer, scorer
from mechprobe.evals.scorers.rules import Scorer
from mechprobe.files import dump_json, read_json, sha256_bytes
from mechprobe.models.load import LanguageModel
from mechprobe.posttrain.config import GrpoConfig, PosttrainConfig, SftConfig
from mechprobe.posttrain.examples import Example, prompts_hash, read_examples, require_room
from mechprobe.posttrain.order import order_hash
from mechprobe.posttrain.result import PromptsSeen
from mechprobe.posttrain.reward import require_answers
from mechprobe.posttrain.weights import check_patterns, parameter_names
from mechprobe.stage_folder import MANIFEST, UNFINISHED
from sae_training.config import unusable_name

STAGE = "posttrain"
_ELSEWHERE: Any = {"prompts": True, "answer_field": True, "state_every": True, "scorer": True, "match_kl": {"run"}}
"""Settings that hashes and fingerprints stand for, or that do not change the result."""


@dataclass(frozen=True)
class Arm:
    """One arm with everything that is known before it is trained.

    Attributes:
        name: Name of the arm.
        out: Folder of all arms that are compared.
        base: The base model.
        config: Settings.
        examples: The prompts.
        judge: What judges responses; None for SFT on given ones.
        processes: Number of processes that train together.
        matched: The model at whose divergence from base SFT stops.
    """

    name: str
    out: Path
    base: LanguageModel
    config: PosttrainConfig
    examples: Sequence[Example]
    judge: Scorer | None
    processes: int = 1
    matched: LanguageModel | None = None

    @classmethod
    def read(
        cls, name: str, out: Path, base: LanguageModel, config: PosttrainConfig, judge: AnyScorer | None, processes: int
    ) -> "Arm":
        """Read the prompts and check everything that can be known before the training.

        Raises:
            ConfigError: A setting does not fit the model, or another.
            InputError: A prompt is unusable.
            ModelError: The base is.
        """
        if unusable_name(name) or name == base.name:
            raise ConfigError(f"An arm cannot be named '{name}', which names its folder; give another --arm.")
        if base.architecture is not None:
            check_patterns(list(parameter_names(base)), config.freeze)
        sampled = isinstance(config, GrpoConfig) or (isinstance(config, SftConfig) and config.on_policy is not None)
        if isinstance(config, GrpoConfig) and config.beta and base.folder.base is not None and config.lora is None:
            raise ConfigError(
                "beta needs the base a second time, which TRL cannot load from an adapter; merge it, or set lora."
            )
        used = scorer(config.scorer if judge is None else judge) if sampled else None
        examples = read_examples(base, config)
        arm = cls(name, out, base, config, examples, used, processes, _matched(base, config))
        if used is not None:
            require_answers(examples, used, config.answer_field)
        if used is not None or arm.matched is not None:
            require_room(examples, base, config.max_new_tokens)
        beyond = [step for step in config.checkpoints or () if step > arm.n_steps]
        if beyond:
            raise ConfigError(f"checkpoints names step {beyond[0]}, but the training has {arm.n_steps}; leave it out.")
        return arm

    @property
    def method(self) -> Literal["sft", "grpo"]:
        """How it is trained."""
        return "grpo" if isinstance(self.config, GrpoConfig) else "sft"

    @property
    def folder(self) -> Path:
        """Folder of its last model, its checkpoints and its manifest."""
        return self.out / self.name

    @property
    def n_steps(self) -> int:
        """Number of steps over all prompts."""
        return self.config.n_steps(len(self.examples))

    @property
    def answers(self) -> list[str]:
        """The right answers; empty texts where none is read."""
        return [item.answer or "" for item in self.examples]

    @cached_property
    def seen(self) -> PromptsSeen:
        """Which prompts it sees."""
        per_step = self.config.prompts_per_step
        return PromptsSeen(
            file=Path(self.config.prompts.file).name,
            n=len(self.examples),
            sha256=prompts_hash(self.examples),
            order_sha256=order_hash([item.prompt.id for item in self.examples], self.config),
            per_step=per_step,
            visits=self.n_steps * per_step,
        )

    @property
    def models(self) -> dict[str, str]:
        """Name and fingerprint of the models that it reads."""
        matched = {} if self.matched is None else {"matched": self.matched.fingerprint}
        return {"base": self.base.fingerprint, **matched}

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides the result: settings, hashes of what is read, and what changes the last bits."""
        config = self.config
        given = isinstance(config, SftConfig) and config.on_policy is None
        read = [[item.answer if self.judge else None, item.response_ids if given else None] for item in self.examples]
        return {
            **config.model_dump(mode="json", exclude=_ELSEWHERE),
            "method": self.method,
            "prompts": {"sha256": self.seen.sha256, "order_sha256": self.seen.order_sha256},
            "targets_sha256": sha256_bytes(dump_json(read).encode()),
            "scorer": None if self.judge is None else self.judge.identity,
            "processes": self.processes,
            "device": self.base.device,
        }

    def check_beside(self) -> None:
        """Refuse another base or other prompts than those of the arms in the same folder.

        Raises:
            ArtifactError: An arm beside this one has another base, other prompts, or another order of them.
        """
        places = [] if self.matched is None else [self.matched.path]
        for other in (*sorted(self.out.glob("*/")), *places):
            record = next((other / name for name in (MANIFEST, UNFINISHED) if (other / name).is_file()), None)
            found = None if record is None or other == self.folder else read_json(record)
            if isinstance(found, dict) and found.get("stage") == STAGE:
                self.check_same(found, other)

    def check_same(self, found: dict[str, Any], place: Path) -> None:
        """Refuse an arm that has another base, other prompts, or another order of them; ``found`` is its manifest."""
        own, theirs = self.identity["prompts"], found["config"].get("prompts", {})
        different = [
            what
            for what, same in (
                ("another base", found["models"].get("base") == self.base.fingerprint),
                ("other prompts", theirs.get("sha256") == own["sha256"]),
                ("another order of the prompts", theirs.get("order_sha256") == own["order_sha256"]),
            )
            if not same
        ]
        if different:
            raise ArtifactError(
                f"The arm in {place} has {' and '.join(different)}, and arms that are compared share them; give the same "
                "base, prompts, shuffle and order_seed, or another --out."
            )


def _matched(base: LanguageModel, config: PosttrainConfig) -> LanguageModel | None:
    """The model of the arm that is matched; it must have the vocabulary of the base."""
    if not isinstance(config, SftConfig) or config.match_kl is None:
        return None
    model = LanguageModel("matched", config.match_kl.run, device=base.device, trust_remote_code=base.trust_remote_code)
    if model.n_rows != base.n_rows or model.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise ModelError(f"{config.match_kl.run} has another vocabulary than the base; give an arm of this base.")
    return model
