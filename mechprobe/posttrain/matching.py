"""SFT that stops where its divergence from base reaches that of another arm."""

from dataclasses import dataclass, field
from pathlib import Path

from mechprobe.files import read_json, write_json
from mechprobe.posttrain.arm import Arm
from mechprobe.posttrain.config import MatchKlConfig, SftConfig
from mechprobe.posttrain.kl import KlProbe
from mechprobe.posttrain.result import KlMatch
from mechprobe.statistics import Interval

_COURSE = "state/kl.json"


@dataclass
class KlStop:
    """Measures the divergence of an arm while it trains, and says when it has reached that of another.

    Attributes:
        config: Settings.
        probe: What is measured on.
        target: Divergence of the other arm.
        file: Where the course is kept for a resumed training.
        course: ``(step, divergence)`` of every measurement.
    """

    config: MatchKlConfig
    probe: KlProbe
    target: Interval
    file: Path
    course: list[tuple[int, Interval]] = field(default_factory=list)

    def resume(self, step: int) -> None:
        """Read the measurements up to a step, from which the training goes on."""
        rows = read_json(self.file) if step and self.file.is_file() else []
        self.course = [(at, Interval(*values)) for at, values in rows if at <= step]

    def enough(self, model: object, step: int) -> bool:
        """Measure at every ``config.every``-th step, and say whether the target is reached."""
        if step % self.config.every:
            return False
        self.course.append((step, self.probe.measure(model)))
        write_json(self.file, self.course)
        return self.course[-1][1].value >= self.target.value

    def result(self) -> KlMatch:
        """The measurements."""
        reached = bool(self.course) and self.course[-1][1].value >= self.target.value
        return KlMatch(
            run=Path(self.config.run).name,
            target=self.target,
            course=tuple(self.course),
            reached=reached,
            n_prompts=len(self.probe.prompts),
        )


def kl_stop(arm: Arm) -> KlStop | None:
    """Measure the other arm, and prepare to stop at its divergence; None where none is to be matched."""
    config, other = arm.config, arm.matched
    if not isinstance(config, SftConfig) or config.match_kl is None or other is None:
        return None
    n = min(config.match_kl.n_prompts, len(arm.examples))
    chosen = [arm.examples[index * len(arm.examples) // n].prompt_ids for index in range(n)]
    probe = KlProbe(arm.base.hf, arm.base.tokenizer, chosen, config.max_new_tokens, config.seed)
    target = probe.measure(other.hf)
    other.release()
    return KlStop(config.match_kl, probe, target, arm.folder / _COURSE)
