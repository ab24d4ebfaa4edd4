"""The dictionaries that a setting asks for."""

from mechprobe.emergence.arms import Arm
from mechprobe.emergence.config import EmergenceConfig
from mechprobe.emergence.dictionaries import pair_jobs


def test_pairwise_dictionaries_are_trained_for_every_seed() -> None:
    arms = [
        Arm("rl", ("rl@step_000001", "rl"), (0.0, 0.5, 1.0), "steps"),
        Arm("sft", ("x", "sft"), (0.0, 0.5, 1.0), "steps"),
    ]
    (one,) = pair_jobs(arms, EmergenceConfig())["rl"]
    assert [job.name for job in one] == ["pairs/rl@step_000001", "pairs/rl", "pairs/rl_again"]
    repeats = pair_jobs(arms, EmergenceConfig(seeds=3))
    assert repeats["rl"][0] == one  # a further seed leaves what is trained as it is
    assert repeats["sft"][2][2].name == "pairs_seed2/sft_again"
    jobs = [job for arm in repeats.values() for jobs in arm for job in jobs]
    assert len(jobs) == len({job.seed for job in jobs}) == len({job.name for job in jobs}) == 18
    assert pair_jobs(arms, EmergenceConfig(seeds=3, pairs=False)) == {}
