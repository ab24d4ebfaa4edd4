"""Training steps with the Triton kernels: equal to other backends, reproducible, without waits and large tensors."""

from __future__ import annotations

import itertools
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sae_training import Crosscoder, CrosscoderConfig, PlantedConfig, PlantedFeatures, SaeTrainingError, TrainConfig
from sae_training.kernels import backend
from sae_training.selection import Selector
from sae_training.trainer import Trainer
from sae_training.variants import VARIANTS

ALL = ("batchtopk", "l1", "matryoshka", "topk")
ROOT = Path(__file__).resolve().parents[2]
TRUTH = PlantedFeatures.make(PlantedConfig(n_models=2, d_model=6, n_shared=8, n_specific=1, density=0.2))
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def trained(
    kernel: str, variant: str, device: torch.device, dtype: torch.dtype = torch.float64, n_steps: int = 2
) -> tuple[Trainer, list[dict[str, Any]]]:
    """A few steps with dead latents, clipping, dedicated latents and a penalty."""
    shape = {"n_models": 2, "d_model": 6, "d_sae": 15, "k": 2, "n_dedicated": (1, 1)}
    crosscoder = Crosscoder(CrosscoderConfig(variant=variant, **shape)).to(device, dtype)
    trainer = Trainer(
        crosscoder,
        TrainConfig(
            n_tokens=n_steps * 8, batch_size=8, kernel=kernel, l1_coefficient=0.1, l1_warmup_frac=0.0,
            lr=1e-2, dead_after_tokens=8,
        ),
    )  # fmt: skip
    stream = list(itertools.islice(TRUTH.batches(8, seed=0), n_steps))
    trainer.set_up([batch.to(device, dtype) for batch in stream[:1]])
    return trainer, [trainer.metrics(trainer.step(batch.to(device, dtype))) for batch in stream]


@pytest.mark.parametrize("variant", ALL)
def test_a_step_is_the_same_dense_sparse_and_through_triton(kernel_device: torch.device, variant: str) -> None:
    expected, expected_metrics = trained("dense", variant, torch.device("cpu"))
    runs = {"triton": trained("triton", variant, kernel_device), "sparse": trained("sparse", variant, kernel_device)}
    for kernel, (trainer, metrics) in runs.items():
        for name, tensor in expected.crosscoder.state_dict().items():
            found = trainer.crosscoder.state_dict()[name].cpu()
            torch.testing.assert_close(found, tensor, rtol=1e-9, atol=1e-10, msg=f"{kernel}: {name} differs")
        assert torch.equal(trainer.state.tokens_since_fired.cpu(), expected.state.tokens_since_fired)
        for one, other in zip(metrics, expected_metrics, strict=True):
            for name in ("loss", "mse", "aux", "penalty", "l0", "dead_frac", "threshold"):
                assert one[name] == pytest.approx(other[name], rel=1e-9, abs=1e-12), (kernel, name)
    if variant in ("batchtopk", "topk"):
        assert any(line["aux"] > 0 for line in expected_metrics), "the dead latents' loss took part"


@pytest.mark.parametrize("variant", ["l1", "matryoshka", "topk"])
def test_same_bytes_each_time(kernel_device: torch.device, variant: str) -> None:
    runs = [trained("triton", variant, kernel_device, torch.float32)[0] for _ in range(2)]
    for one, other in zip(*(run.crosscoder.state_dict().values() for run in runs), strict=True):
        assert torch.equal(one, other)


class Watch(TorchDispatchMode):
    """Records the largest tensor, and every operation that waits for a GPU to return its result."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "_to_copy", "repeat_interleave")

    def __init__(self) -> None:
        super().__init__()
        self.largest, self.waited = 0, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        boolean_index = name == "index" and any(
            isinstance(place, Tensor) and place.dtype == torch.bool for place in args[1]
        )
        moves = name == "_to_copy" and (kwargs or {}).get("device") is None
        if (name in self.WAITING and not moves) or boolean_index:
            self.waited.append(str(func))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            # Tensors of bytes are copies that the interpreter makes of a kernel's arguments.
            if isinstance(tensor, Tensor) and tensor.dtype != torch.uint8:
                self.largest = max(self.largest, tensor.numel())
        return out


def products(selector: Selector, scores: Tensor, norm: Tensor, upstream: Tensor, weight: Tensor) -> None:
    """All products that a step computes from the active latents, including the blocks of matryoshka."""
    active, _ = selector.select(scores, norm, sparse=True)
    for part, place in active.split((norm.shape[0] // 2, norm.shape[0])):
        part.decode(weight[place])
        gradient = part.add_per_latent(part.values_gradient(upstream, weight[place]), norm[place])
        part.weight_gradient(gradient, upstream)
        part.column_sum(gradient)
        part.column_count()


@pytest.mark.parametrize(("variant", "n_waits"), [("batchtopk", 0), ("topk", 0), ("l1", 1)])
def test_nothing_waits_for_the_device_but_the_size_of_l1(
    kernel_device: torch.device, variant: str, n_waits: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(*shape, generator=generator) for shape in ((5, 12), (12,), (5, 4), (12, 4))]
    scores, norm, upstream, weight = (tensor.to(kernel_device) for tensor in inputs)
    with Watch() as watch:
        products(Selector(VARIANTS[variant], 2, "triton"), scores, norm.abs() + 1, upstream, weight)
    assert len(watch.waited) == n_waits, watch.waited


def test_watch_sees_what_waits() -> None:
    with Watch() as watch:
        values = torch.arange(3.0)
        values[values > 1]
        float(values.sum())
        values.double()
    assert len(watch.waited) == 2


def test_no_tensor_has_an_entry_axis_and_a_width_axis(kernel_device: torch.device) -> None:
    n_rows, k, d_sae, d = 16, 20, 24, 192
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(*shape, generator=generator) for shape in ((n_rows, d_sae), (d_sae,), (n_rows, d), (d_sae, d))
    ]
    scores, norm, upstream, weight = (tensor.to(kernel_device) for tensor in inputs)
    with Watch() as watch:
        products(Selector(VARIANTS["batchtopk"], k, "triton"), scores.abs(), norm.abs() + 1, upstream, weight)
    # The largest is a matrix the size of the decoder; the gathered rows together would be n_rows * k * d.
    assert watch.largest <= max(d_sae * d, n_rows * d, n_rows * 256)
    assert watch.largest < n_rows * k * d / 10


COMPILE = """
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from sae_training.kernels import products, selection

GIVEN = dict(TILE=16, WIDTH=256, CHUNK=128, SUM=tl.float32, SHIFT=16, FIRST=False, PER_ROW=False, BITS=8, DIGITS=256,
             KEY=tl.int32, BLOCK=1024)
PLACES = {"columns", "rows", "counts", "out_rows", "out_columns"}
NUMBERS = {"first", "d", "n_columns", "n_entries"}
LONG = {"row_begin", "row_end", "begin", "end", "first_chunk", "chunk_column", "spare_begin", "spare_end",
        "spare_column", "prefix", "wanted", "digits", "cut", "room"}
KERNELS = (products._decode, products._values_gradient, products._weight_gradient, products._add_spare, products._column_sum,
           selection._count_digits, selection._pick_digit, selection._write_entries)
for kernel in KERNELS:
    names = kernel.arg_names
    kind = lambda n: "i32" if n in NUMBERS else "*i32" if n in PLACES else "*i64" if n in LONG else "*bf16"
    signature = {n: "constexpr" if n in GIVEN else kind(n) for n in names}
    constants = {(i,): GIVEN[n] for i, n in enumerate(names) if n in GIVEN}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n not in GIVEN}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = compile(source, target=GPUTarget("cuda", 90, 32))
    print(kernel.__name__, len(compiled.asm["cubin"]) > 0, compiled.asm["ptx"].count("ld.global.v4"))
"""


@pytest.mark.slow
def test_kernels_compile_for_hopper_without_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    settings |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", COMPILE], env=settings, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    compiled = {name: (made, int(wide)) for name, made, wide in (line.split() for line in run.stdout.splitlines())}
    assert len(compiled) == 8
    assert all(made == "True" for made, _ in compiled.values())
    for name in ("_decode", "_values_gradient", "_weight_gradient", "_count_digits", "_write_entries"):
        assert compiled[name][1] > 0, f"{name} reads 16 bytes at a time"


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(n_tokens=100, batch_size=10, **changes)


@pytest.fixture
def without_triton(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(backend, "triton_missing", lambda _: "Triton is not installed")
    backend._triton_or_warn.cache_clear()
    yield
    backend._triton_or_warn.cache_clear()


def test_what_runs_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "triton_missing", lambda _: None)
    monkeypatch.setattr(backend, "_triton_or_warn", lambda: True)
    cpu, cuda, other = torch.device("cpu"), torch.device("cuda"), torch.device("mps")
    assert backend.choose_backend("dense", cuda) is None
    assert backend.choose_backend("auto", cpu) == backend.choose_backend("sparse", cpu) == "embedding_bag"
    assert backend.choose_backend("auto", cuda) == backend.choose_backend("sparse", cuda) == "triton"
    assert backend.choose_backend("auto", other) is None
    with pytest.raises(SaeTrainingError, match=r"'sparse'.*CUDA.*mps"):
        backend.choose_backend("sparse", other)


def test_triton_on_a_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=6, d_sae=18, k=3))
    with pytest.raises(SaeTrainingError, match="TRITON_INTERPRET=1"):
        Trainer(crosscoder, config(kernel="triton"))


def test_auto_without_triton_is_dense_and_says_so_once(without_triton: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert [backend.choose_backend("auto", torch.device("cuda")) for _ in range(3)] == [None] * 3
    assert [record.message for record in caplog.records] == [
        "Triton is not installed: the crosscoder's steps on the GPU are dense; install triton for sparse ones"
    ]


def test_a_kernel_that_cannot_run_is_a_reason(monkeypatch: pytest.MonkeyPatch, kernel_device: torch.device) -> None:
    from sae_training.kernels import products

    def no_compiler(*_: Tensor) -> Tensor:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    ones = torch.ones
    monkeypatch.setattr(torch, "ones", lambda *shape, device: ones(*shape))
    monkeypatch.setattr(products, "column_sum", no_compiler)
    backend.triton_missing.cache_clear()
    said = backend.triton_missing("cuda")
    backend.triton_missing.cache_clear()
    assert said == "Triton cannot run a kernel here (Failed to find C compiler.)"


def test_sparse_without_triton_is_refused(without_triton: None) -> None:
    with pytest.raises(SaeTrainingError, match=r"'sparse'.*cuda.*Triton"):
        backend.choose_backend("sparse", torch.device("cuda"))


@pytest.mark.parametrize(
    ("variant", "k", "density", "sparse"),
    [("topk", 3, 1.0, True), ("topk", 9, 0.0, False), ("l1", 3, 0.1, True), ("l1", 3, 0.3, False)],
)
def test_auto_goes_by_the_density_on_a_gpu(variant: str, k: int, density: float, sparse: bool) -> None:
    crosscoder = Crosscoder(CrosscoderConfig(n_models=2, d_model=6, d_sae=18, k=k, variant=variant))
    trainer = Trainer(crosscoder, config(kernel="auto", sparse_below=0.0, sparse_below_gpu=0.2))
    trainer.state.density = density
    assert not trainer._sparse(), "on a CPU, sparse_below decides"
    trainer._backend = "triton"
    assert trainer._sparse() == sparse


def test_break_even_by_hand() -> None:
    # 2 * 3.35e12 B/s / (600e12 FLOP/s * 2 B) on an H100: 183 of 32,768 latents.
    density = backend.break_even_density(3.35e12, 600e12, 2)
    assert density == pytest.approx(0.00558, abs=1e-5)
    assert round(density * 32768) == 183
    assert config().sparse_below_gpu == pytest.approx(density, rel=0.01)


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("variant", ["batchtopk", "matryoshka", "topk"])
def test_products_on_a_gpu_do_not_synchronize(variant: str) -> None:
    scores, norm = torch.randn(64, 512, device="cuda"), torch.rand(512, device="cuda") + 1
    upstream, weight = torch.randn(64, 96, device="cuda"), torch.randn(512, 96, device="cuda")
    selector = Selector(VARIANTS[variant], 8, "triton")
    products(selector, scores, norm, upstream, weight)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        products(selector, scores, norm, upstream, weight)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_products_on_a_gpu_equal_the_dense_ones(dtype: torch.dtype) -> None:
    n_rows, d_sae, d, k = 2048, 16384, 1536, 32
    generator = torch.Generator("cuda").manual_seed(0)
    scores = torch.randn(n_rows, d_sae, generator=generator, device="cuda")
    scores[:, 7] = 9.0  # one latent in every row: a long column
    weight = torch.randn(d_sae, d, generator=generator, device="cuda").to(dtype)
    upstream = torch.randn(n_rows, d, generator=generator, device="cuda").to(dtype)
    norm = torch.ones(d_sae, device="cuda")
    active, cut = Selector(VARIANTS["batchtopk"], k, "triton").select(scores, norm, sparse=True)
    highest = torch.topk(scores.flatten(), n_rows * k).values.min()
    assert cut is not None
    assert torch.equal(cut, highest)
    acts = torch.where(scores >= highest, scores, 0.0).double()
    tolerance = {"rtol": 1e-4, "atol": 1e-3}
    found = active.decode(weight)
    torch.testing.assert_close(found.double(), acts @ weight.double(), **tolerance)
    found = active.weight_gradient(active.values, upstream)
    torch.testing.assert_close(found.double(), acts.T @ upstream.double(), **tolerance)
    gradient = active.values_gradient(upstream, weight)
    expected = (upstream.double() @ weight.double().T) * (acts > 0)
    torch.testing.assert_close(active.column_sum(gradient.float()).double(), expected.sum(dim=0), rtol=2e-2, atol=1.0)
    again = active.weight_gradient(active.values, upstream)
    assert torch.equal(found, again)
