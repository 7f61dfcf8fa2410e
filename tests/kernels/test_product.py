"""Products in three parts of bfloat16 are as exact as float32's; every shape, layout and number of threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from luthier.kernels import product as module
from luthier.kernels.linear import linear, linears
from luthier.kernels.processor import split_loops
from luthier.kernels.product import product, splits

amx = pytest.mark.skipif(split_loops() is None, reason="needs an Intel processor with AMX, Linux and Numba")


@pytest.fixture(scope="module", autouse=True)
def everything_in_parts() -> Iterator[None]:
    """However small."""
    before = module.NARROWEST, module.FEWEST
    module.NARROWEST, module.FEWEST = 1, 0
    yield
    module.NARROWEST, module.FEWEST = before


def _matrix(rows: int, columns: int, layout: str, seed: int) -> Tensor:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    if layout == "turned":
        return x.T.contiguous().T
    if layout == "part of a wider one":
        wide = torch.full((rows, columns + 7), torch.nan)
        wide[:, 3 : columns + 3] = x
        return wide[:, 3 : columns + 3]
    return x


sizes = st.sampled_from([2, 5, 16, 31, 32, 33, 48, 100, 161, 513])
layouts = st.sampled_from(["as it is", "turned", "part of a wider one"])


@amx
@given(sizes, sizes, sizes, layouts, layouts, st.sampled_from(["made", "with bias", "written", "added"]))
def test_close_to_float64(M: int, N: int, K: int, a_layout: str, b_layout: str, what: str) -> None:
    a, b = _matrix(M, K, a_layout, 0), _matrix(K, N, b_layout, 1)
    bias, out = torch.randn(N, generator=torch.Generator().manual_seed(2)), _matrix(M, N, "part of a wider one", 3)
    truth = a.double() @ b.double()
    if what == "made":
        found = product(a, b)
    elif what == "with bias":
        truth, found = truth + bias, product(a, b, bias)
    else:
        truth = truth + out.double() if what == "added" else truth
        found = product(a, b, out=out, add=what == "added")
        assert found is out
    assert splits(a, b)
    assert float((found.double() - truth).abs().max()) <= 1e-5 * K**0.5


@amx
@pytest.mark.parametrize("K", [64, 512, 1376, 4096])
def test_errors_are_not_larger_than_those_of_float32(K: int) -> None:
    """Of the library that PyTorch multiplies with, and of one long sum as they are longer."""
    a, b = _matrix(300, K, "as it is", 0), _matrix(K, 200, "turned", 1)
    truth = a.double() @ b.double()

    def error(c: Tensor) -> float:
        return float((c.double() - truth).square().mean().sqrt())

    assert error(product(a, b)) <= error(a @ b)


@amx
def test_no_bit_of_a_number_is_lost() -> None:
    """Through the identity every number comes back as it went in, whichever side it stands on, from 2⁻⁹⁰ to 2¹²⁰."""
    scale = torch.randint(-90, 120, (200, 64), generator=torch.Generator().manual_seed(1))
    x = torch.ldexp(_matrix(200, 64, "as it is", 0), scale)
    assert torch.equal(product(x, torch.eye(64)), x)
    assert torch.equal(product(torch.eye(200), x), x)
    assert torch.equal(product(x.T, torch.eye(200)), x.T)


@amx
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_a_number(bad: float) -> None:
    a, b = torch.ones(40, 64), torch.ones(64, 48)
    a[3, 5] = bad
    found = product(a, b)
    assert found[3].isnan().all() and found[[*range(3), *range(4, 40)]].isfinite().all()


@amx
def test_a_nan_of_all_bits_stays_one() -> None:
    a = torch.ones(40, 64)
    a.view(torch.int32)[3, 5] = 0x7FFFFFFF
    assert product(a, torch.ones(64, 48))[3].isnan().all()


@amx
@pytest.mark.parametrize(("M", "N"), [(700, 96), (96, 700), (33, 33)])
def test_two_threads_make_the_same_bits(M: int, N: int) -> None:
    a, b, before = _matrix(M, 1100, "turned", 0), _matrix(1100, N, "turned", 1), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = product(a, b)
        torch.set_num_threads(2)
        assert splits(a, b)
        assert torch.equal(product(a, b), alone)
    finally:
        torch.set_num_threads(before)


@amx
def test_compiled(random: Callable[..., Any]) -> None:
    """Layers of one input, in one graph, with the values and gradients that they have without."""
    layers = [torch.nn.Linear(64, n, bias=n == 48) for n in (48, 96)]
    x = random(2, 70, 64).float().requires_grad_()
    learned = [x, *(w for layer in layers for w in layer.parameters())]

    def loss(x: Tensor) -> Tensor:
        return sum((y.sin().sum() for y in linears(x, *layers)), x.new_zeros(()))

    expected = torch.autograd.grad(loss(x), learned)
    y = torch.compile(loss, backend="aot_eager", fullgraph=True)(x)
    for found, right in zip(torch.autograd.grad(y, learned), expected, strict=True):
        assert torch.equal(found, right)


@amx
def test_what_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other dtypes, autocast, transforms, matrices whose numbers do not lie side by side."""
    monkeypatch.setattr(module, "_split", lambda *_: pytest.fail("multiplied in parts"))
    a, b = torch.ones(40, 64), torch.ones(64, 48)
    assert product(a.double(), b.double()).dtype == torch.float64
    assert float(product(torch.ones(40, 128)[:, ::2], b)[0, 0]) == 64
    with torch.autocast("cpu", torch.bfloat16):
        assert product(a, b).dtype == torch.bfloat16
    pushed: Any = torch.func.vmap(lambda row: product(row[None], b)[0])(a)
    assert torch.equal(pushed, a @ b)


def test_small_products_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NARROWEST", 128)
    monkeypatch.setattr(module, "FEWEST", 2**25)
    assert not splits(torch.ones(64, 4096), torch.ones(4096, 4096))
    assert not splits(torch.ones(256, 64), torch.ones(64, 256))
    assert splits(torch.ones(512, 512), torch.ones(512, 512)) is (split_loops() is not None)


@amx
@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_a_model_in_parts(model_type: str) -> None:
    """Loss and gradients are no farther from float64's than PyTorch's products leave them."""
    from luthier.models.config import preset
    from luthier.models.transformer import Transformer

    small = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 200, "intermediate_size": 160}
    gpt2 = {"model_type": "gpt2", "num_key_value_heads": 4, "hidden_act": "gelu"} if model_type == "gpt2" else {}
    config = replace(preset("tiny", **small), **{"num_attention_heads": 4, "num_key_value_heads": 2, **gpt2})
    ids = torch.randint(0, 200, (3, 65), generator=torch.Generator().manual_seed(0))

    def slopes(dtype: torch.dtype) -> list[Tensor]:
        model = Transformer(config).to(dtype)
        total, count = model.loss(ids[:, :-1], ids[:, 1:])
        (total / count).backward()
        return [total.detach(), *(w.grad for w in model.parameters() if w.grad is not None)]

    truth, found = slopes(torch.float64), slopes(torch.float32)
    module.NARROWEST = 10**9
    try:
        plainly = slopes(torch.float32)
    finally:
        module.NARROWEST = 1
    assert not all(torch.equal(a, b) for a, b in zip(found, plainly, strict=True))
    for right, ours, theirs in zip(truth, found, plainly, strict=True):
        budget = 2 * float((theirs - right).abs().max()) + 1e-7 * float(right.abs().max())
        assert float((ours - right).abs().max()) <= budget


@amx
def test_a_gradient_is_torchs() -> None:
    a, b = (torch.ones(40, 40, requires_grad=True) for _ in range(2))
    product(a, b).sum().backward()
    assert a.grad is not None and torch.equal(a.grad, torch.full((40, 40), 40.0))
    assert product(a.detach(), b.detach(), torch.ones(40, requires_grad=True)).requires_grad


@amx
def test_what_does_not_fit_is_torchs_to_say() -> None:
    a, b, out = torch.ones(40, 64), torch.ones(64, 48), torch.zeros(80, 48)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        product(a, b[:32])
    with pytest.raises(RuntimeError):
        product(a, b, out=out[:20], add=True)
    with pytest.raises(RuntimeError):
        product(a, b, torch.ones(47))
    assert torch.equal(product(a, b, torch.ones(1)), torch.full((40, 48), 65.0))
    assert torch.equal(product(a, b, torch.arange(96.0)[::2])[0], 64 + torch.arange(96.0)[::2])
    assert not out.any()


@amx
def test_a_tensor_that_autograd_keeps_may_not_change() -> None:
    x, out = torch.ones(40, 48, requires_grad=True), torch.ones(40, 48)
    y = (x * out).sum()
    product(torch.ones(40, 64), torch.ones(64, 48), out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


@amx
def test_operations_are_counted() -> None:
    with FlopCounterMode(display=False) as counter:
        product(torch.ones(40, 64), torch.ones(64, 48))
    assert counter.get_total_flops() == 2 * 40 * 64 * 48


@amx
def test_compiled_without_a_gradient() -> None:
    x, weight = torch.ones(2, 70, 64), torch.ones(48, 64)
    compiled = torch.compile(lambda: linear(x, weight), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(), torch.full((2, 70, 48), 64.0))


ELSEWHERE = """
import torch
from luthier.kernels.product import product
print(product(torch.ones(512, 512), torch.eye(512)).sum())
"""


@pytest.mark.parametrize("told", ["NUMBA_CPU_NAME=generic", "NUMBA_DISABLE_JIT=1", "NUMBA_CPU_FEATURES=+avx2"])
def test_numba_compiles_for_another_processor(told: str) -> None:
    name, _, value = told.partition("=")
    environment = {**os.environ, name: value}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE], env=environment, capture_output=True, text=True, timeout=300
    )
    assert "262144" in done.stdout, done.stderr
