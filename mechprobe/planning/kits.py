"""Seconds and bytes of what commands import, each kit by the smallest use of it, in processes of their own."""

import json
import os
import subprocess
import sys

from mechprobe.errors import ModelError

_HEAD = """
import json, resource, sys, time
found, last = {}, [time.perf_counter(), 0]
def done(name):
    now, held = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    found[name] = [now - last[0], held - last[1]]
    last[:] = [now, held]
def attempt(name, work):
    try:
        work()
    except ImportError:
        return
    done(name)
"""
_STAGES = """
def models():
    import pandas, pyarrow.parquet, scipy.stats, torch
    from transformers import AutoModelForCausalLM, LlamaConfig
    sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, vocab_size=64)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes))
    model.generate(torch.zeros(1, 4, dtype=torch.int64), max_new_tokens=2, do_sample=False, pad_token_id=0)
def bridge():
    import transformer_lens.model_bridge
def figures():
    from matplotlib.figure import Figure
    figure = Figure()
    figure.subplots().plot([1, 2])
    figure.savefig(__import__("io").BytesIO(), format="png")
def classifiers():
    import numpy
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    LogisticRegression().fit(numpy.arange(8.0).reshape(4, 2), [0, 1, 0, 1])
import mechprobe.cli.app, mechprobe.pipeline.plans, torch
done("program")
models()
done("models")
for name, work in (("bridge", bridge), ("figures", figures), ("classifiers", classifiers)):
    attempt(name, work)
print(json.dumps(found))
"""
_PAGE = """
import mechprobe.cli.app, mechprobe.report.stage, pandas, pyarrow.parquet
def figures():
    from matplotlib.figure import Figure
    figure = Figure()
    figure.subplots().plot([1, 2])
    figure.savefig(__import__("io").BytesIO(), format="png")
attempt("page", figures)
print(json.dumps(found))
"""
_OPTIONAL = """
import mechprobe.pipeline.plans, torch
done("before")
def optimizer():
    weight = torch.nn.Parameter(torch.ones(4))
    (weight * weight).sum().backward()
    torch.optim.Adam([weight], fused=True).step()
attempt("optimizer", optimizer)
from transformers import AutoModelForCausalLM
done("before")
attempt("sae_lens", lambda: __import__("sae_lens"))
def trl():
    from trl import GRPOTrainer, SFTTrainer
attempt("trl", trl)
print(json.dumps(found))
"""


def measure_kits() -> tuple[dict[str, float], dict[str, int]]:
    """Kit → seconds until it is ready, and kit → bytes that it takes.

    Raises:
        ModelError: What every stage imports cannot be imported.
    """
    seconds: dict[str, float] = {}
    held: dict[str, int] = {}
    # What every stage imports may come from the disk the first time.
    for script in (_STAGES, _STAGES, _PAGE, _OPTIONAL):
        for name, (took, n_bytes) in _found(script).items():
            if name != "before":
                seconds[name], held[name] = min(took, seconds.get(name, took)), max(0, int(n_bytes))
    return seconds, held


def _found(script: str) -> dict[str, tuple[float, int]]:
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", **os.environ}
    command = [sys.executable, "-c", _HEAD + script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise ModelError(
            f"The stages cannot be imported ({done.stderr.strip().splitlines()[-1]}); see `mechprobe doctor`."
        )
    return json.loads(done.stdout.splitlines()[-1])
