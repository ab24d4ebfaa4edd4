"""The judge that some settings describe."""

from mechprobe.evals.judging.config import JudgeConfig
from mechprobe.evals.judging.judge import FunctionJudge, Judge
from mechprobe.evals.judging.model_judge import ModelJudge
from mechprobe.evals.judging.server_judge import ServerJudge
from mechprobe.evals.judging.verdict_file import FileJudge


def judge_of(config: JudgeConfig, *, device: str = "cpu", trust_remote_code: bool = False) -> Judge:
    """The judge of some settings; a local model is found and checked, but not loaded.

    Raises:
        ConfigError: A function cannot be imported, or a key is not set.
        InputError: A file of verdicts is unusable.
        ModelError: A local model cannot be used.
    """
    if config.function:
        return FunctionJudge(config)
    if config.verdicts:
        return FileJudge(config)
    if config.endpoint is not None:
        return ServerJudge(config)
    return ModelJudge(config, device=device, trust_remote_code=trust_remote_code)
