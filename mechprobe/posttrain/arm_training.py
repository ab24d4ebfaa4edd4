"""The training of one arm: its rows and their order, what happens at every step, and what is written at the end."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mechprobe.posttrain.arm import Arm
from mechprobe.posttrain.config import GrpoConfig, SftConfig
from mechprobe.posttrain.examples import Row, fitted
from mechprobe.posttrain.matching import KlStop, kl_stop
from mechprobe.posttrain.order import visits
from mechprobe.posttrain.reinforcement import train_grpo
from mechprobe.posttrain.rejection import RESPONSES_FILE, Drawn, draw_responses, write_responses
from mechprobe.posttrain.result import RESULT_FILE, OnPolicy, PosttrainResult, TokensSeen, step_name
from mechprobe.posttrain.reward import Rewards
from mechprobe.posttrain.supervised import train_sft
from mechprobe.posttrain.tokens import sampled_tokens, supervised_tokens
from mechprobe.posttrain.training import Place, Session, clean
from mechprobe.posttrain.watch import Watch
from mechprobe.posttrain.weights import frozen_by, load_trainable, parameter_names, save, save_into, stored_dtype
from mechprobe.progress import progress, tell_once
from mechprobe.stage_folder import UNFINISHED, Stage

_STATE = "state"


@dataclass
class ArmTraining:
    """The training of one arm in one process.

    Attributes:
        arm: The arm.
        stage: Its stage, which the first process alone writes; None in the others.
        drawn: The samples of the base for on-policy SFT.
        rows: The sequences of SFT.
        order: Index of the row, for GRPO of the prompt, of every visit.
        done: Finished steps.
    """

    arm: Arm
    stage: Stage | None
    drawn: list[Drawn] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    done: int = 0

    def run(self) -> None:
        """Train, save the last model and the result, and finish the stage."""
        place = Place(self.arm.base.device, self.arm.processes, self.arm.folder / _STATE)
        if self.stage is not None:
            clean(place)
        try:
            self._run(place)
        except BaseException:
            if self.stage is not None and place.latest() is None:
                self._leave_nothing()
            raise

    def _leave_nothing(self) -> None:
        """Remove the folder of a training that ended before it kept anything, so that other settings may follow."""
        if all(path.name in (UNFINISHED, _STATE) for path in self.arm.folder.glob("*")):
            shutil.rmtree(self.arm.folder, ignore_errors=True)

    def _run(self, place: Place) -> None:
        arm = self.arm
        self.rows, chosen = self._rows() if arm.method == "sft" else ([], list(range(len(arm.examples))))
        n_steps = arm.config.n_steps(len(chosen))
        self.order = self._order(chosen, n_steps)
        stop = kl_stop(arm)
        with progress(n_steps, arm.name, unit="steps", quiet=self.stage is None) as advance:
            watch = self._watch(n_steps, stop, advance)
            frozen = frozen_by(arm.config.freeze)
            session = Session(n_steps, self.order, arm.config.seed, watch, place, frozen)
            model = self._train(session)
        if self.stage is not None:
            self._finish(self.stage, model, watch, stop, n_steps)

    def _rows(self) -> tuple[list[Row], list[int]]:
        """The sequences of SFT, and the index of the example of each; on-policy SFT has none where no sample is right."""
        arm, config = self.arm, self.arm.config
        assert isinstance(config, SftConfig)
        if config.on_policy is None:
            return arm.given, list(range(len(arm.examples)))
        assert arm.judge is not None
        self.drawn = draw_responses(arm.base, arm.examples, arm.answers, arm.judge, config, arm.folder)
        chosen = [index for index, found in enumerate(self.drawn) if found.ids is not None]
        rows = [Row(arm.examples[index].prompt_ids, self.drawn[index].ids or ()) for index in chosen]
        examples = [arm.examples[index] for index in chosen]
        return fitted(rows, examples, arm.longest, cut=config.too_long == "cut"), chosen

    def _order(self, chosen: Sequence[int], n_steps: int) -> list[int]:
        """Index of the row of every visit: the order of all prompts, without those that have no row."""
        needed, place = n_steps * self.arm.config.prompts_per_step, {index: row for row, index in enumerate(chosen)}
        passes = -(-needed // len(chosen)) + 1
        every = visits(len(self.arm.examples), passes * len(self.arm.examples), self.arm.config)
        return [place[index] for index in every if index in place][:needed]

    def _watch(self, n_steps: int, stop: KlStop | None, advance: Any) -> Watch:
        def resumed(step: int) -> None:
            self.done = step
            if step and self.stage is not None:
                tell_once(f"Arm {self.arm.name} goes on after step {step}.")
            if stop is not None:
                stop.resume(step)
            advance.found(step)

        def on_step() -> None:
            self.done += 1
            last = watch.curve[-1] if watch.curve else {}
            advance(1, **{name: last[name] for name in ("loss", "reward") if name in last})

        watch = Watch(
            checkpoints=self.arm.config.kept(n_steps) if self.stage is not None else (),
            keep=lambda model, step: save(
                model, self.arm.base.tokenizer, self.arm.folder / step_name(step), self._dtype
            ),
            on_step=on_step,
            resumed=resumed,
        )
        if stop is not None:
            watch.enough = stop.enough
        return watch

    @property
    def _dtype(self) -> Any:
        import torch

        kind = self.arm.config.save_dtype
        return stored_dtype(self.arm.base) if kind == "base" else getattr(torch, kind)

    def _train(self, session: Session) -> Any:
        arm, config = self.arm, self.arm.config

        def load() -> Any:
            return load_trainable(arm.base, config)

        tokenizer = arm.base.tokenizer
        if isinstance(config, SftConfig):
            return train_sft(load, tokenizer, self.rows, config, session)
        assert isinstance(config, GrpoConfig)
        assert arm.judge is not None, "GRPO always has a scorer"
        rewards = Rewards(arm.judge, arm.answers, score_cut=config.score_cut, end_ids=arm.base.own_end_ids)
        return train_grpo(load, tokenizer, [item.prompt_ids for item in arm.examples], rewards, config, session)

    def _finish(self, stage: Stage, model: Any, watch: Watch, stop: KlStop | None, planned: int) -> None:
        arm = self.arm
        files = save_into(model, arm.base.tokenizer, stage.folder, self._dtype)
        kept = tuple(
            step for step in watch.checkpoints if step < self.done and (stage.folder / step_name(step)).is_dir()
        )
        for place in stage.folder.glob("step_*"):
            if place.name not in map(step_name, kept):  # the step at which matched SFT stopped
                shutil.rmtree(place)
        sizes = parameter_names(arm.base)
        trained = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
        left_out = sum(item.ids is None for item in self.drawn)
        result = PosttrainResult(
            arm=arm.name,
            method=arm.method,
            steps=self.done,
            planned=planned,
            checkpoints=kept,
            n_parameters=sum(sizes.values()),
            n_trained=sum(trained),
            prompts=arm.seen.model_copy(
                update={"visits": len(self.order) * self.done // planned, "left_out": left_out}
            ),
            curve=tuple(watch.curve),
            on_policy=self._on_policy(),
            kl=None if stop is None else stop.result(),
            tokens=self._tokens(watch, (*kept, self.done)),
        )
        result.save(stage.folder / RESULT_FILE)
        if self.drawn:
            write_responses(arm.examples, self.drawn, stage.folder)
            files = [*files, RESPONSES_FILE]
        for step in kept:
            place = stage.folder / step_name(step)
            files = [*files, *(f"{place.name}/{path.name}" for path in place.iterdir())]
        counts = {"steps": self.done, "visits": result.prompts.visits, "prompts": len(arm.examples)}
        summary = result.model_dump(mode="python", exclude={"curve"})
        stage.finish(outputs=[*files, RESULT_FILE], counts=counts, results=summary, seed=arm.config.seed)
        shutil.rmtree(stage.folder / _STATE, ignore_errors=True)

    def _tokens(self, watch: Watch, steps: Sequence[int]) -> tuple[TokensSeen, ...]:
        config = self.arm.config
        if not isinstance(config, GrpoConfig):
            return supervised_tokens(self.rows, self.order, config.prompts_per_step, steps)
        prompts = [item.prompt_ids for item in self.arm.examples]
        return sampled_tokens(prompts, self.order, config.prompts_per_step, config.n_generations, watch.counted, steps)

    def _on_policy(self) -> OnPolicy | None:
        config = self.arm.config
        if not isinstance(config, SftConfig) or config.on_policy is None:
            return None
        n, right = config.on_policy.n, [item.n_right for item in self.drawn]
        return OnPolicy(n=n, right=sum(right) / (n * len(right)), prompts_with_right=sum(count > 0 for count in right))
