"""One pass over memory gives what the formulas give: values, gradients, and where it is taken."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels import processor
from luthier.kernels.gelu import gelu
from luthier.kernels.layer_norm import add_layer_norm, layer_norm, layer_norm_reference
from luthier.kernels.rms_norm import add_rms_norm, add_rms_norm_reference, rms_norm, rms_norm_reference
from luthier.kernels.rope import frequencies, rope, rope_reference, rope_table
from luthier.kernels.swiglu import swiglu, swiglu_reference

row_loops = pytest.importorskip("luthier.kernels.row_loops", reason="Numba is not installed")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Loops for few numbers, too; the names of those that were called."""
    calls: list[str] = []
    monkeypatch.setattr(processor, "FEWEST", 0)
    for name in row_loops.__all__:
        loop = getattr(row_loops, name)
        monkeypatch.setattr(row_loops, name, lambda *a, loop=loop, name=name: (calls.append(name), loop(*a))[1])
    return calls


SHAPES = [(1, 1), (3, 5), (123, 63), (4, 33, 781), (200, 16)]


@pytest.mark.parametrize("shape", SHAPES)
def test_rms_norm(
    shape: tuple[int, ...], taken: list[str], within_budget: Callable[..., None], random: Callable[..., Tensor]
) -> None:
    x, residual, weight = random(*shape), random(*shape, seed=1), random(shape[-1], seed=2)
    within_budget(partial(rms_norm, eps=1e-5), partial(rms_norm_reference, eps=1e-5), [x, weight])
    within_budget(partial(add_rms_norm, eps=1e-5), partial(add_rms_norm_reference, eps=1e-5), [x, residual, weight])
    assert {"rms_norm", "rms_norm_back"} == set(taken)


@pytest.mark.parametrize("shape", SHAPES)
def test_layer_norm(
    shape: tuple[int, ...], taken: list[str], within_budget: Callable[..., None], random: Callable[..., Tensor]
) -> None:
    x, residual, (weight, bias) = random(*shape), random(*shape, seed=1), random(2, shape[-1], seed=2)

    def plain(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return layer_norm_reference(x + residual, weight, bias, 1e-5), x + residual

    for given in ([weight, bias], [weight]):
        within_budget(layer_norm, lambda x, w, b=None: layer_norm_reference(x, w, b, 1e-5), [x, *given], floor=1e-4)
        within_budget(add_layer_norm, plain, [x, residual, *given], floor=1e-4)
    assert {"layer_norm", "layer_norm_back"} == set(taken)


@pytest.mark.parametrize("add", [add_rms_norm, add_layer_norm])
@pytest.mark.parametrize("which", [0, 1])
def test_one_of_two_results(add: Any, which: int, taken: list[str], random: Callable[..., Tensor]) -> None:
    """Where only the norm or only the sum is used, its gradient is that of both with nothing from the other."""
    x, residual = random(9, 8).float().requires_grad_(), random(9, 8, seed=1).float().requires_grad_()
    wanted = random(9, 8, seed=2).float()
    alone = torch.autograd.grad(add(x, residual, torch.ones(8))[which], [x, residual], wanted)
    both = [wanted, torch.zeros(9, 8)]
    together = torch.autograd.grad(
        list(add(x, residual, torch.ones(8))), [x, residual], both[:: 1 if which == 0 else -1]
    )
    assert taken and all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_swiglu(
    shape: tuple[int, ...], taken: list[str], within_budget: Callable[..., None], random: Callable[..., Tensor]
) -> None:
    within_budget(swiglu, swiglu_reference, [20 * random(*shape), random(*shape, seed=1)])
    assert {"swiglu", "swiglu_back"} == set(taken)


@pytest.mark.parametrize(("B", "T", "H", "D"), [(1, 1, 1, 2), (2, 63, 3, 32), (3, 20, 2, 80)])
def test_rope(
    B: int, T: int, H: int, D: int, taken: list[str], within_budget: Callable[..., None], random: Callable[..., Tensor]
) -> None:
    """With one table for all rows, and with one for each; x a slice of a wider tensor."""
    tables = rope_table(frequencies(D, 1e4), B * T)
    for shape in ((T,), (B, T)):
        cos, sin = (t[: T * (B if len(shape) > 1 else 1)].view(*shape, D // 2) for t in tables)
        within_budget(
            lambda x, cos=cos, sin=sin: rope(x[..., :D], cos, sin),
            lambda x, cos=cos, sin=sin: rope_reference(x[..., :D], cos.to(x.dtype), sin.to(x.dtype)),
            [random(B, T, H, D + 3)],
        )
    assert set(taken) == {"rope"}


def test_the_exponential_from_end_to_end(taken: list[str]) -> None:
    """silu of every size of number, beside float64's."""
    x = torch.cat([torch.linspace(-87, 87, 20_001), torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e30])])
    right = torch.nn.functional.silu(x.double())
    error = (swiglu(x, torch.ones_like(x)).double() - right).abs()
    assert taken and float((error / right.abs().clamp(min=1e-35)).max()) < 4e-7


def test_what_is_not_a_number_stays_so(taken: list[str]) -> None:
    x = torch.tensor([[1.0, torch.nan, 2.0]], requires_grad=True)
    y = swiglu(x, torch.ones(1, 3))
    assert y.isnan().tolist() == [[False, True, False]]
    y.sum().backward()
    assert x.grad is not None and x.grad.isnan().tolist() == [[False, True, False]]
    assert rms_norm(x, torch.ones(3)).isnan().all() and taken


def test_long_sums_are_exact(taken: list[str], random: Callable[..., Tensor]) -> None:
    """The weight's gradient over many rows of one sign."""
    x, weight = random(50_000, 8).abs().float() + 1, torch.ones(8, requires_grad=True)
    rms_norm(x, weight).backward(torch.ones_like(x))
    right = (x.double() * (x.double().square().mean(-1, keepdim=True) + 1e-5).rsqrt()).sum(0)
    assert taken and weight.grad is not None
    torch.testing.assert_close(weight.grad.double(), right, rtol=2e-6, atol=0)


def test_left_to_torch(monkeypatch: pytest.MonkeyPatch, taken: list[str]) -> None:
    """Other dtypes and classes, few numbers, many threads, transforms."""
    x, threads = torch.ones(4, 8), torch.get_num_threads()
    swiglu(x.double(), x.double())
    swiglu(x.bfloat16(), x.bfloat16())
    torch.func.grad(lambda a: swiglu(a, x).sum())(x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    swiglu(x, x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(processor, "FEWEST", 33)
    swiglu(x, x)
    assert not taken
    monkeypatch.setattr(processor, "FEWEST", 32)
    swiglu(x, x)
    assert list(dict.fromkeys(taken)) == ["swiglu"]


@pytest.mark.parametrize("name", ["swiglu", "gelu", "rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm"])
def test_closed_to_the_compiler(name: str, taken: list[str], random: Callable[..., Tensor]) -> None:
    """Compiled in one piece the loops are called as they are: the same bits."""
    x, other, weight = random(40, 16).float(), random(40, 16, seed=1).float(), random(16, seed=2).float()
    function, given = {
        "swiglu": (swiglu, [x, other]),
        "gelu": (gelu, [x, weight]),
        "rms_norm": (rms_norm, [x, weight]),
        "add_rms_norm": (add_rms_norm, [x, other, weight]),
        "layer_norm": (layer_norm, [x, weight, weight + 1]),
        "add_layer_norm": (add_layer_norm, [x, other, weight, weight + 1]),
    }[name]

    def made(run: Callable[..., Any]) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in given]
        out = run(*leaves)
        out = list(out) if isinstance(out, tuple) else [out]
        return [*out, *torch.autograd.grad([y.sin().sum() for y in out], leaves)]

    expected = made(function)
    taken.clear()
    found = made(torch.compile(function, backend="aot_eager", fullgraph=True))
    short = name.removeprefix("add_")
    assert list(dict.fromkeys(taken)) == [short, f"{short}_back"]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_without_numba() -> None:
    """Kernels work, and say that their rows go in several passes."""
    program = (
        "import sys\n"
        "sys.modules['numba'] = None\n"
        "import torch\n"
        "from luthier.kernels import processor, swiglu\n"
        "swiglu.swiglu(torch.ones(300, 300), torch.ones(300, 300))\n"
        'assert processor.ways().endswith("rows in PyTorch\'s passes"), processor.ways()\n'
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_the_default_dtype_is_not_asked(default: torch.dtype) -> None:
    x, weight, angle = torch.randn(1024, 64), torch.ones(64), torch.randn(1024, 32)
    x4 = x.view(1, 1024, 1, 64)

    def made() -> list[Tensor]:
        given = [x.clone().requires_grad_(), x.clone().requires_grad_()]
        out = swiglu(given[0], rms_norm(given[1], weight, 1e-6))
        return [out, *torch.autograd.grad(out.square().sum(), given), rope(x4, angle.cos(), angle.sin())]

    expected, before = made(), torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = made()
    finally:
        torch.set_default_dtype(before)
    assert all(a.dtype == torch.float32 and torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_gates_far_below_zero() -> None:
    a = torch.tensor([-1e38, -3e38, -200.0, -89.0, -torch.inf, torch.nan, 1e38]).repeat(8192).requires_grad_()
    found = swiglu(a, torch.ones_like(a))
    expected = torch.nn.functional.silu(a)
    ours, theirs = (torch.autograd.grad(x.sum(), a)[0][:7] for x in (found, expected))
    assert torch.allclose(found[:7], expected[:7], atol=1e-30, equal_nan=True)
    assert torch.allclose(ours, theirs, atol=1e-30, equal_nan=True)


def test_without_a_folder_for_what_is_compiled_pytorch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(name: str) -> None:
        raise RuntimeError(f"cannot cache function: no locator available for {name}")

    monkeypatch.setattr(processor, "import_module", nowhere)
    assert processor.compiled.__wrapped__("row_loops") is None
