"""``mechprobe bench --calibrate``: the rates of this machine, in about a minute."""

import datetime
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from statistics import median
from typing import Any, TypeVar

from mechprobe.errors import ModelError
from mechprobe.planning.formulas import FLOAT, crosscoder_weights, encode_flop, forward_flop, optimizer_bytes
from mechprobe.planning.kits import measure_kits
from mechprobe.planning.machine import device_name
from mechprobe.planning.rates import FEW, FULL, Rates
from mechprobe.planning.shapes import ModelShape
from mechprobe.planning.units import measure_units, small_tokenizer
from mechprobe.progress import activity

T = TypeVar("T")

_WIDTHS = {"cpu": (128, 384, 1024), "cuda": (1024, 4096)}
_LENGTH = 64
_PROBE_BYTES = 1 << 27
_HEAD_WIDTH, _HEAD_IDS = 1024, 1 << 15
_SECONDS = 1.0
_ATTEMPTS, _FEWEST = 3, 6
"""Measurements of a training step before the machine counts as too busy, and calls of each step in one of them."""


def calibrate(device: str = "cpu") -> Rates:
    """Measure the rates of a device of this machine. A busy machine gives the rates of a busy machine; `Rates.made` keeps the load.

    Raises:
        ModelError: The device does not exist, or the machine is too busy.
    """
    import torch

    from mechprobe.models.devices import check_device

    check_device(device)
    kind = _kind(device)
    if kind not in _WIDTHS:
        raise ModelError(f"Device '{device}' cannot be calibrated; give cpu or cuda.")
    began, load = time.monotonic(), os.getloadavg()[0]
    start_s, held = _measured("imports", measure_kits)
    dtypes = ("float32", "bfloat16", *(("tf32",) if kind == "cuda" else ()))
    bandwidth = _measured("memory", lambda: _bandwidth(device))
    training, sparse, selection = _measured("training steps", lambda: _training(device, bandwidth))
    write, read = _measured("disk", _disk)
    call_s, step_s = _measured("calls of small models", lambda: _calls(device))
    blocks = {
        dtype: {
            str(width): _measured(
                f"blocks of width {width} in {dtype}", lambda w=width, d=dtype: _block_rate(device, d, w, call_s)
            )
            for width in _WIDTHS[kind]
        }
        for dtype in dtypes
    }
    return Rates(
        name=device_name(kind),
        device="cuda" if kind == "cuda" else "cpu",
        source="measured",
        blocks=blocks,
        heads={dtype: _measured("unembedding", lambda d=dtype: _head_rate(device, d)) for dtype in dtypes},
        training=training,
        sparse=sparse,
        selection=selection,
        bandwidth=bandwidth,
        call_s=call_s,
        step_s=step_s,
        write=write,
        read=read,
        copy=_copy(device) if kind == "cuda" else bandwidth,
        start_s=start_s,
        held=held,
        units=_measured("work of the host", measure_units),
        memory=torch.cuda.get_device_properties(device).total_memory if kind == "cuda" else _host_memory(),
        cores=os.cpu_count() or 1,
        crowded=_measured("all cores together", _crowded) if kind == "cpu" else 1.0,
        context=0,
        made={
            "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
            "seconds": round(time.monotonic() - began, 1),
            "threads": torch.get_num_threads(),
            "load": [round(load, 2), round(os.getloadavg()[0], 2)],
            "versions": {name: version(name) for name in ("mechprobe", "torch", "transformers")},
            "python": platform.python_version(),
        },
    )


def _measured(what: str, work: Callable[[], T]) -> T:
    """The result of a measurement, whose name the progress shows."""
    with activity(what):
        return work()


def _host_memory() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _kind(device: str) -> str:
    import torch

    return torch.device(device).type


def _timed(work: Callable[[], Any], device: str) -> float:
    """Seconds of a call, until the device has finished it."""
    import torch

    start = time.perf_counter()
    work()
    if _kind(device) == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _typical(work: Callable[[], Any], device: str, *, seconds: float = _SECONDS) -> float:
    """Seconds of a call, the median; the first one, which chooses kernels, does not count."""
    _timed(work, device)
    found, began = [], time.monotonic()
    while not found or (time.monotonic() - began < seconds and len(found) < 200):
        found.append(_timed(work, device))
    return median(found)


def _model(device: str, dtype: str, width: int, n_layers: int) -> tuple[Any, ModelShape]:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from mechprobe.models.precision import allow_tf32

    config = LlamaConfig(
        hidden_size=width, intermediate_size=3 * width, num_hidden_layers=n_layers, num_attention_heads=max(1, width // 64),
        num_key_value_heads=max(1, width // 64), vocab_size=512,
    )  # fmt: skip
    own = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
    model = AutoModelForCausalLM.from_config(config, dtype=own, attn_implementation="eager").to(device)
    if dtype == "tf32":
        allow_tf32(model.model)
    return model.eval(), ModelShape.of(config)


def _block_rate(device: str, dtype: str, width: int, call_s: float) -> tuple[float, float]:
    """FLOP per second of two blocks on few tokens and on a full batch, without the time of calls."""
    import torch

    model, shape = _model(device, dtype, width, 2)
    full = (FULL[_kind(device)] // _LENGTH, _LENGTH)
    rates = []
    with torch.no_grad():
        for rows, length in ((FEW, 1), full):
            ids = torch.zeros(rows, length, dtype=torch.int64, device=device)
            taken = _typical(lambda ids=ids: model.model(ids, use_cache=False), device, seconds=_SECONDS / 2)
            rates.append(forward_flop(shape, ids.numel(), length) / max(taken - 2 * call_s, taken / 4))
    return rates[0], rates[1]


def _head_rate(device: str, dtype: str) -> tuple[float, float]:
    """FLOP per second of an unembedding whose weights no cache holds, on few tokens and on a full batch."""
    import torch

    from mechprobe.models.precision import allow_tf32

    own = torch.float32 if dtype == "tf32" else getattr(torch, dtype)
    head = torch.nn.Linear(_HEAD_WIDTH, _HEAD_IDS, bias=False, device=device, dtype=own)
    if dtype == "tf32":
        allow_tf32(head)
    rates = []
    for rows in (FEW, FULL[_kind(device)] // 8):
        x = torch.randn(rows, _HEAD_WIDTH, device=device, dtype=own)
        with torch.no_grad():
            taken = _typical(lambda x=x: head(x), device, seconds=_SECONDS / 2)
        rates.append(2 * rows * _HEAD_WIDTH * _HEAD_IDS / taken)
    return rates[0], rates[1]


def _calls(device: str) -> tuple[float, float]:
    """Seconds of a block call and of a generation step, in a model too small to matter."""
    import torch

    from mechprobe.models.generation import generate

    deep, _ = _model(device, "float32", 64, 12)
    flat, _ = _model(device, "float32", 64, 2)
    ids, tokenizer = torch.zeros(1, 1, dtype=torch.int64, device=device), small_tokenizer()
    with torch.no_grad():
        both = [
            _typical(lambda model=model: model.model(ids, use_cache=False), device, seconds=0.5)
            for model in (deep, flat)
        ]
        call = max(1e-6, (both[0] - both[1]) / 10)
        flat.generation_config.eos_token_id = None
        options = {"max_new_tokens": 32, "end_ids": ()}
        whole = _typical(lambda: generate(flat, tokenizer, [[0]], **options), device, seconds=0.5)
    return call, max(1e-6, whole / 32 - 2 * call)


def _crowded() -> float:
    """Seconds of blocks in one thread of torch on every core at the same time, over those of one caller with all its threads."""
    import torch

    model, _ = _model("cpu", "float32", 384, 2)
    ids = torch.zeros(FULL["cpu"] // _LENGTH, _LENGTH, dtype=torch.int64)

    def taken(threads: int) -> float:
        torch.set_num_threads(threads)  # of the calling thread
        with torch.no_grad():
            return _typical(lambda: model.model(ids, use_cache=False), "cpu")

    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as several:
        alone = several.submit(taken, torch.get_num_threads()).result()
        together = list(several.map(taken, [1] * cores))
    return max(1.0, sum(together) / cores / alone)


def _bandwidth(device: str) -> float:
    """Bytes read and written per second by a copy."""
    import torch

    source = torch.zeros(_PROBE_BYTES // FLOAT, device=device)
    target = torch.empty_like(source)
    return 2 * _PROBE_BYTES / _typical(lambda: target.copy_(source), device, seconds=0.3)


def _copy(device: str) -> float:
    import torch

    source = torch.zeros(_PROBE_BYTES // FLOAT, pin_memory=True)
    return _PROBE_BYTES / _typical(lambda: source.to(device), device, seconds=0.3)


def _disk() -> tuple[float, float]:
    """Bytes per second that reach the disk, and that come back after the system has forgotten them."""
    data = os.urandom(1 << 20) * (_PROBE_BYTES >> 20)
    with tempfile.NamedTemporaryFile(prefix="mechprobe_bench_") as file:
        began = time.perf_counter()
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        write = len(data) / (time.perf_counter() - began)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        began = time.perf_counter()
        while file.read(1 << 22):
            pass
        return write, len(data) / (time.perf_counter() - began)


def _training(device: str, bandwidth: float) -> tuple[float, float, float]:
    """FLOP per second of dense and of sparse products of a crosscoder's step, and its seconds for a score, without its optimizer.

    Steps of two widths differ in all products, and steps of two numbers of latents in dense products and scores. The steps take turns,
    so that other work on the machine slows all of them.

    Raises:
        ModelError: The times contradict each other, three times over.
    """
    wide, d_sae, k, batch = (256, 4096, 32, 512) if _kind(device) == "cpu" else (2048, 16384, 64, 4096)
    sizes = ((wide, d_sae), (wide // 4, d_sae), (wide, d_sae // 4))
    steps = [_step(device, width, latents, k, batch) for width, latents in sizes]
    moved = [optimizer_bytes(crosscoder_weights(3 * width, latents)) / bandwidth for width, latents in sizes]
    d_all = 3 * wide
    for _ in range(_ATTEMPTS):
        whole, narrow, small = (taken - other for taken, other in zip(_in_turns(steps, device), moved, strict=True))
        by_latents = (whole - small) * 4 / 3
        sparse = max(whole - by_latents, whole / 100)  # next to nothing on a card
        dense = (whole - narrow) * 4 / 3 - sparse
        if min(by_latents, dense) > whole / 20:  # neither is so small in a step of these sizes (ours)
            rates = encode_flop(d_all, d_sae, batch) / dense, 8 * d_all * k * batch / sparse
            return *rates, max(by_latents - dense, 0.0) / (batch * d_sae)
    raise ModelError(
        "The times of training steps contradict each other, as they do on a busy machine; end other work and calibrate again."
    )


def _in_turns(works: Sequence[Callable[[], Any]], device: str) -> list[float]:
    """The median seconds of each of several works, of which one call follows the other."""
    found: list[list[float]] = [[] for _ in works]
    began = time.monotonic()
    while len(found[0]) < _FEWEST or time.monotonic() - began < len(works) * _SECONDS:
        for work, taken in zip(works, found, strict=True):
            taken.append(_timed(work, device))
    return [median(taken[1:]) for taken in found]


def _step(device: str, d_model: int, d_sae: int, k: int, batch: int) -> Callable[[], Any]:
    """A step of a crosscoder of three models."""
    import torch

    from sae_training import CrosscoderConfig, TrainConfig
    from sae_training.crosscoder import Crosscoder
    from sae_training.trainer import Trainer

    crosscoder = Crosscoder(CrosscoderConfig(n_models=3, d_model=d_model, d_sae=d_sae, k=k)).to(device)
    trainer = Trainer(crosscoder, TrainConfig(n_tokens=10**6, batch_size=batch))
    x = torch.randn(batch, 3, d_model, generator=torch.Generator().manual_seed(0)).to(device)
    trainer.set_up([x])
    return lambda: trainer.step(x)
