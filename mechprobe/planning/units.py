"""Seconds of the work that a host does for one unit, by the routines of the stages themselves on small inputs."""

import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from statistics import median
from typing import Any

from mechprobe.files import sha256_bytes
from mechprobe.planning.rates import UNITS

_TEXT = "The sum of seven and nine is sixteen, and twice that is 32; so the answer is 32. "


def measure_units() -> dict[str, float]:
    """Seconds of every unit of `mechprobe.planning.rates.UNITS` on this host."""
    figure, chart = _figures()
    prompt, token = _tokens()
    opened, loaded, weight = _models()
    product, eigen = _matrices()
    found = {
        "opened": opened, "loaded": loaded, "weight": weight, "product": product, "eigen": eigen, "fitted": _fitted(), "sampled": _sampled(), "sae_step": _sae_step(),
        "token": token, "prompt": prompt, "hashed": _hashed(), "record": _record(), "drawn": _drawn(), "curve": _curve(),
        "figure": figure, "chart": chart,
    }  # fmt: skip
    return {name: found[name] for name in UNITS}


def typical(work: Callable[[], Any], *, seconds: float = 0.3) -> float:
    """Seconds of a call, the median; the first one does not count."""
    work()
    found, began = [], time.monotonic()
    while not found or (time.monotonic() - began < seconds and len(found) < 200):
        start = time.perf_counter()
        work()
        found.append(time.perf_counter() - start)
    return median(found)


def small_tokenizer() -> Any:
    """A byte-pair tokenizer of a few hundred tokens, made from one sentence."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        [_TEXT], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    made.add_special_tokens(["<end>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<end>")


def _tokens() -> tuple[float, float]:
    """Seconds of a call, and of a token in it."""
    tokenizer = small_tokenizer()
    short, long = _TEXT[:8], _TEXT * 40
    call, whole = (typical(lambda text=text: tokenizer(text).input_ids) for text in (short, long))
    n = len(tokenizer(long).input_ids)
    return call, max(1e-9, (whole - call) / n)


def _models() -> tuple[float, float, float]:
    """Seconds to inspect the folder of a model too small to matter, to load and release it, and of each byte of a larger one."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from mechprobe.models.family import ModelFamily

    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=512,
        eos_token_id=300,
    )
    with tempfile.TemporaryDirectory(prefix="mechprobe_bench_") as place:
        folders = [f"{place}/{number}" for number in range(4)]
        model, tokenizer = AutoModelForCausalLM.from_config(config), small_tokenizer()
        for folder in folders:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        first = ModelFamily.load({"base": folders[0]})["base"]
        _ = first.architecture
        start = time.perf_counter()
        for each in ModelFamily.load({f"m{number}": folder for number, folder in enumerate(folders[1:])}):
            _ = each.architecture
        opened = (time.perf_counter() - start) / (
            len(folders) - 1
        )  # once each, because what is read of a folder is kept

        def load(model: Any = first) -> None:
            _ = model.hf
            model.release()

        loaded = typical(load)
        large = LlamaConfig(**{**config.to_dict(), "vocab_size": 1 << 16, "hidden_size": 512})
        model = AutoModelForCausalLM.from_config(large, dtype="bfloat16")
        model.save_pretrained(f"{place}/large")
        tokenizer.save_pretrained(f"{place}/large")
        stored = 2 * sum(value.numel() for value in model.parameters())
        del model
        beyond = typical(lambda: load(ModelFamily.load({"large": f"{place}/large"}, dtype="float32")["large"])) - loaded
        return opened, loaded, max(0.0, beyond) / stored


def _matrices() -> tuple[float, float]:
    """Seconds of a multiplication and addition of float64 matrices, and of an eigendecomposition of side 1."""
    import torch

    side = 384
    square = torch.randn(side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    symmetric = square @ square.T
    return typical(lambda: square @ square) / side**3, typical(lambda: torch.linalg.eigh(symmetric)) / side**3


def _fitted() -> float:
    """A number of the rows that a logistic regression of five classes is fitted on, as for a probe and its control; 0 without scikit-learn.

    The variances of the rows fall as 1/i² (ours): probes of residuals take about as many iterations.
    """
    import numpy as np

    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        return 0.0
    rows, width, classes = 800, 128, 5
    rng = np.random.default_rng(0)
    labels, deviations = np.arange(rows) % classes, 1 / np.arange(1, width + 1)
    turned = np.linalg.qr(rng.normal(size=(width, width)))[0]
    x = StandardScaler().fit_transform(
        ((rng.normal(size=(classes, width)) / 4)[labels] + rng.normal(size=(rows, width))) * deviations @ turned
    )
    both = (labels, rng.permutation(labels))
    model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=500)
    return sum(typical(lambda given=given: model.fit(x, given)) for given in both) / (2 * rows * width)


def _sampled() -> float:
    """A sampled token beyond a greedy one, in a model too small to matter."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from mechprobe.models.generation import generate

    config = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, vocab_size=512
    )
    model, tokenizer = AutoModelForCausalLM.from_config(config), small_tokenizer()
    model.generation_config.eos_token_id = None
    rows, new = [[0]] * 64, 8

    def respond(temperature: float) -> None:
        generate(model, tokenizer, rows, max_new_tokens=new, end_ids=(), temperature=temperature)

    greedy, sampled = (typical(lambda heat=heat: respond(heat)) for heat in (0.0, 1.0))
    return max(0.0, sampled - greedy) / (len(rows) * new)


def _sae_step() -> float:
    """A token and latent of a step of sae-lens on activations too narrow to matter; 0 without sae-lens."""
    import torch

    from sae_training.baseline import SaeBaselineConfig, baseline_trainer

    rows, d_sae = 512, 1024
    config = SaeBaselineConfig(d_sae=d_sae, k=16, n_tokens=10**6, batch_size=rows)
    x = torch.randn(rows, 8, generator=torch.Generator().manual_seed(0))
    try:
        trainer = baseline_trainer(config, x.mean(dim=0).double(), "cpu")
    except ImportError:
        return 0.0
    return typical(lambda: trainer.step(x)) / (rows * d_sae)


def _hashed() -> float:
    data = os.urandom(1 << 24)
    return typical(lambda: sha256_bytes(data)) / len(data)


def _record() -> float:
    """A greedy response to a task: decoded, judged, kept, written and read back."""
    from mechprobe.evals.scorers.parse import scorer
    from mechprobe.evals.scoring import response_outcome
    from mechprobe.evals.tasks import Task
    from mechprobe.models.generation import Generated
    from mechprobe.records import Outcome, Sample

    tokenizer, sample = small_tokenizer(), Sample("a", "t", "What is it?", "32")
    task, ids = Task("t", (sample,), scorer("numeric")), tuple(tokenizer(_TEXT).input_ids)

    def work() -> None:
        response = Generated(tokenizer.decode(ids), ids, "stop", ids)
        outcome = response_outcome(task, sample, [response], "model", tokenizer)
        Outcome(**json.loads(json.dumps(asdict(outcome))))

    return typical(work)


def _drawn() -> float:
    import numpy as np

    from mechprobe.statistics import bootstrap_mean

    values = np.linspace(0, 1, 256)
    return typical(lambda: bootstrap_mean(values, seed=0, draws=1000)) / (256 * 1000)


def _curve() -> float:
    import numpy as np

    from mechprobe.dynamics.dip_statistic import Noise, dip_statistic

    noise = Noise(
        0.5, (0.3,) * 8
    )  # scores of 0.5 and 0.9 on equally many items (ours): a larger error of base takes a finer grid
    curves = noise.draw(np.random.default_rng(0), 2000)
    return typical(lambda: dip_statistic(curves, noise)) / (2000 * 8)


def _figures() -> tuple[float, float]:
    """Seconds of a figure of one axes in the three forms that stages write, and of each further axes; 0 without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return 0.0, 0.0

    def draw(n: int) -> None:
        figure = Figure(layout="constrained")
        for axes in figure.subplots(1, n, squeeze=False)[0]:
            for shift in range(3):
                axes.errorbar(range(8), [shift + k % 3 for k in range(8)], yerr=0.5, label=f"model {shift}")
            axes.legend()
        for form in ("svg", "png", "pdf"):
            figure.savefig(io.BytesIO(), format=form)

    one, four = (typical(lambda n=n: draw(n), seconds=1.5) for n in (1, 4))
    return one, max(0.0, (four - one) / 3)
