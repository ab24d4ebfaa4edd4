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
from mechprobe.posttrain.examples import Example, Row, fitted, given_rows, prompts_hash, read_examples, require_room
from mechprobe.posttrain.order import order_hash
from mechprobe.posttrain.result import CHECKPOINT, PromptsSeen
from mechprobe.posttrain.reward import require_answers
from mechprobe.posttrain.training import micro_batches
from mechprobe.posttrain.weights import trained_sizes
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
        _check_name(name, base)
        _check_training(base, config, processes)
        given = isinstance(config, SftConfig) and config.on_policy is None
        used = None if given else scorer(config.scorer if judge is None else judge)
        arm = cls(name, out, base, config, read_examples(base, config), used, processes, _matched(base, config))
        if used is None:
            assert arm.given, "an arm has at least one prompt"
        else:
            require_answers(arm.examples, used, config.answer_field)
        if used is not None or arm.matched is not None:
            require_room(arm.examples, base.max_context, config.max_new_tokens)
        if isinstance(config, SftConfig) and used is not None and config.too_long == "refuse":
            require_room(arm.examples, arm.longest, config.max_new_tokens)
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
    def longest(self) -> int:
        """Longest prompt with response that SFT trains on, in tokens."""
        limit = self.config.max_length if isinstance(self.config, SftConfig) else None
        return min(limit or self.base.max_context, self.base.max_context)

    @cached_property
    def given(self) -> list[Row]:
        """The sequences of SFT on the responses of the file; `InputError` where one is missing or too long."""
        assert isinstance(self.config, SftConfig)
        rows = given_rows(self.examples, int(str(self.base.tokenizer.eos_token_id)))
        return fitted(rows, self.examples, self.longest, cut=self.config.too_long == "cut")

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
            ArtifactError: An arm beside this one has another base, other prompts, or another order of them, or its manifest
                does not say.
        """
        places = [] if self.matched is None else [self.matched.path]
        for other in (*sorted(self.out.glob("*/")), *places):
            record = next((other / name for name in (MANIFEST, UNFINISHED) if (other / name).is_file()), None)
            found = None if record is None or other == self.folder else _read(record)
            if found is not None:
                self._check_same(*found, other)

    def _check_same(self, models: dict[str, Any], theirs: dict[str, Any], place: Path) -> None:
        """Refuse an arm that has another base, other prompts, or another order of them."""
        own = self.identity["prompts"]
        different = [
            what
            for what, same in (
                ("another base", models.get("base") == self.base.fingerprint),
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


def _read(record: Path) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Models and prompts in the manifest of an arm; None for that of another stage."""
    try:
        found = read_json(record)
    except (RecursionError, ValueError) as error:  # lists in lists without end, a number of 5,000 digits
        raise ArtifactError(f"{record} cannot be read ({error}); remove its folder, or give another --out.") from None
    if not isinstance(found, dict) or found.get("stage") != STAGE:
        return None
    config = found.get("config")
    models, prompts = found.get("models"), config.get("prompts") if isinstance(config, dict) else None
    if not isinstance(models, dict) or not isinstance(prompts, dict):
        raise ArtifactError(
            f"{record} does not say from which base and prompts its arm was trained; remove its folder, or give another --out."
        )
    return models, prompts


def _check_name(name: str, base: LanguageModel) -> None:
    """Refuse a name that cannot be that of a folder and of the models in it, as ``--models NAME=FOLDER`` names them."""
    if unusable_name(name) or name.startswith("-") or {"=", "@"} & set(name):
        raise ConfigError(
            f"An arm cannot be named {name!r}, which names its folder and its models; give another --arm, of letters, digits, "
            "- and _."
        )
    if name == base.name or CHECKPOINT.fullmatch(name):
        raise ConfigError(f"An arm cannot be named {name!r}, as the base and checkpoints are; give another --arm.")


def _check_training(base: LanguageModel, config: PosttrainConfig, processes: int) -> None:
    """Refuse settings that the model or the trainer would refuse, before anything is trained."""
    _ = base.architecture  # raises where the tensors of the base are not those of its architecture
    trained_sizes(base, config)
    micro_batches(config, processes)
    if base.tokenizer.eos_token_id is None:
        raise ModelError(f"The tokenizer of {base.path} has no end token, with which responses end; set its eos_token.")
    if isinstance(config, GrpoConfig) and config.beta and base.folder.base is not None and config.lora is None:
        raise ConfigError(
            "beta needs the base a second time, which TRL cannot load from an adapter; merge it, or set lora."
        )


def _matched(base: LanguageModel, config: PosttrainConfig) -> LanguageModel | None:
    """The model of the arm that is matched; it must have the vocabulary of the base."""
    if not isinstance(config, SftConfig) or config.match_kl is None:
        return None
    model = LanguageModel("matched", config.match_kl.run, device=base.device, trust_remote_code=base.trust_remote_code)
    if model.n_rows != base.n_rows or model.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise ModelError(f"{config.match_kl.run} has another vocabulary than the base; give an arm of this base.")
    return model
