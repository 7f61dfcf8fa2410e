"""oneDNN's products are those of `torch.nn.functional.linear`; it is taken only where it may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels import linear as layers
from luthier.kernels import product as module
from luthier.kernels.linear import linear, linears, product_and_bias
from luthier.models.transformer import Linear

there = pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch has no oneDNN")


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """As on a machine where oneDNN is faster; counts its calls."""
    calls, product = [], module._onednn
    for where in (module, layers):
        monkeypatch.setattr(where, "onednn_is_faster", lambda bias=False: True)
        monkeypatch.setattr(where, "splits", lambda a, b: False)
    monkeypatch.setattr(module, "_onednn", lambda *args: (calls.append(1), product(*args))[1])
    return calls


@there
@pytest.mark.parametrize("rows", [(2, 64), (781,)])
@pytest.mark.parametrize("bias", [False, True])
def test_equal_to_torch(
    rows: tuple[int, ...],
    bias: bool,
    fast: list[int],
    random: Callable[..., Tensor],
    within_budget: Callable[..., None],
) -> None:
    """Values and gradients, through a slice of a wider tensor and a sum, whose gradient has no strides."""
    given = [random(*rows, 40), random(123, 24, seed=1), *([random(123, seed=2)] if bias else [])]
    for turn in (lambda y: y.sin(), lambda y: y.sum()):
        within_budget(
            lambda x, *rest, turn=turn: turn(linear(x[..., 8:32], *rest)),
            lambda x, *rest, turn=turn: turn(F.linear(x[..., 8:32], *rest)),
            given,
        )
    assert fast


@there
@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.zeros(63, 8), torch.zeros(4, 8)),
        (torch.zeros(99, 8, dtype=torch.float64), torch.zeros(4, 8, dtype=torch.float64)),
        (torch.zeros(0, 8), torch.zeros(4, 8)),
        (torch.zeros(99, 8), torch.zeros(4, 16)[:, ::2]),
    ],
)
def test_left_to_torch(x: Tensor, weight: Tensor, fast: list[int]) -> None:
    assert linear(x, weight).shape == (len(x), 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.zeros(99, 8), torch.zeros(4, 8)).dtype == torch.bfloat16
    assert not fast


@there
@pytest.mark.parametrize("bias", [torch.randn(8)[::2], torch.randn(1).expand(4), torch.randn(1)])
def test_a_bias_of_another_layout_is_left_to_torch(bias: Tensor, fast: list[int], random: Callable[..., Any]) -> None:
    x, weight = random(99, 8).float(), random(4, 8, seed=1).float()
    torch.testing.assert_close(linear(x, weight, bias), x @ weight.T + bias)
    assert not fast


@there
def test_the_bias_of_many_rows(fast: list[int]) -> None:
    """Sums of numbers of one sign: one long product would lose two digits."""
    x, dy = torch.zeros(20_000, 8), torch.rand(20_000, 4, generator=torch.Generator().manual_seed(0)) + 1
    bias = torch.zeros(4, requires_grad=True)
    linear(x, torch.ones(4, 8), bias).backward(dy)
    assert fast
    torch.testing.assert_close(bias.grad, dy.double().sum(0).float(), rtol=5e-7, atol=0)


@there
def test_transforms_are_left_to_torch_and_a_second_derivative_is_an_error(fast: list[int]) -> None:
    x, weight = torch.ones(80, 16, requires_grad=True), torch.ones(9, 16)
    pushed: Any = torch.func.jvp(lambda x: linear(x, weight), (x.detach(),), (x.detach(),))
    found = pushed[1]
    assert torch.equal(found, torch.full((80, 9), 16.0)) and not fast
    (slope,) = torch.autograd.grad(linear(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@there
def test_without_a_gradient(fast: list[int], random: Callable[..., Any]) -> None:
    x, weight = random(80, 16).float(), random(9, 16, seed=1).float().requires_grad_()
    with torch.no_grad():
        y = linear(x, weight)
        torch.testing.assert_close(linear(y, weight.T), y @ weight)
    assert len(fast) == 2 and y.grad_fn is None
    torch.testing.assert_close(y, x @ weight.detach().T)


@there
def test_a_frozen_weight_gets_no_gradient(fast: list[int], random: Callable[..., Any]) -> None:
    x, weight = random(80, 16).float().requires_grad_(), random(9, 16, seed=1).float()
    linear(x, weight).sum().backward()
    assert len(fast) == 2 and weight.grad is None and x.grad is not None
    torch.testing.assert_close(x.grad, weight.sum(0).expand(80, 16))


@there
def test_a_frozen_weight_keeps_no_input(fast: list[int]) -> None:
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    x, weight = torch.ones(128, 16, requires_grad=True), torch.ones(4, 16)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        y = linear(x, weight)
    y.sum().backward()
    assert fast and kept == [weight.numel()]
    torch.testing.assert_close(x.grad, torch.full_like(x, 4.0))


@there
def test_another_width_is_torchs_error(fast: list[int]) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        linear(torch.ones(128, 8), torch.ones(4, 16, requires_grad=True))
    assert not fast


@there
def test_compiled(fast: list[int], random: Callable[..., Any]) -> None:
    """In one graph, with the same values and gradients."""
    x, weight = random(80, 16).float().requires_grad_(), random(9, 16, seed=1).float().requires_grad_()
    given = [x, weight]
    expected = torch.autograd.grad(F.linear(x, weight).sin().sum(), given)
    y = torch.compile(lambda x, w: linear(x, w).sin().sum(), backend="aot_eager", fullgraph=True)(x, weight)
    for found, right in zip(torch.autograd.grad(y, given), expected, strict=True):
        torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)
    assert len(fast) == 2


@pytest.mark.parametrize("onednn", [False, True])
def test_several_layers_of_one_input(
    onednn: bool, monkeypatch: pytest.MonkeyPatch, random: Callable[..., Tensor], within_budget: Callable[..., None]
) -> None:
    """Values and gradients are those of the layers one by one, with and without a bias."""
    if onednn and not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        pytest.skip("this PyTorch has no oneDNN")
    for where in (module, layers):
        monkeypatch.setattr(where, "onednn_is_faster", lambda bias=False: onednn)
    applied: list[int] = []
    plain = layers._Linears.apply
    monkeypatch.setattr(layers._Linears, "apply", lambda *given: (applied.append(1), plain(*given))[1])

    def made(how: Callable[..., Any]) -> Callable[..., Any]:
        def run(x: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
            three = [torch.nn.Linear(24, len(weight), bias=n == 0) for n, weight in enumerate(given[:3])]
            for layer, weight in zip(three, given, strict=False):
                del layer.weight
                layer.weight = weight  # pyright: ignore[reportAttributeAccessIssue]
            del three[0].bias
            three[0].bias = given[3]  # pyright: ignore[reportAttributeAccessIssue]
            return how(x, *three)

        return run

    given = [random(2, 64, 24), *(random(n, 24, seed=n) for n in (16, 8, 123)), random(16, seed=9)]
    within_budget(made(linears), made(lambda x, *layers: tuple(layer(x) for layer in layers)), given)
    assert applied


def test_frozen_layers_and_others(random: Callable[..., Tensor]) -> None:
    x = random(2, 64, 24).float().requires_grad_()
    frozen, free, other = torch.nn.Linear(24, 8), torch.nn.Linear(24, 4), torch.nn.Sequential(torch.nn.Linear(24, 3))
    frozen.requires_grad_(False)
    sum(y.sum() for y in linears(x, frozen, free)).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert frozen.weight.grad is None and frozen.bias.grad is None
    assert free.weight.grad is not None and free.bias.grad is not None and x.grad is not None
    torch.testing.assert_close(free.bias.grad, torch.full((4,), 128.0))
    torch.testing.assert_close(x.grad[0, 0], (frozen.weight.sum(0) + free.weight.sum(0)).detach())
    assert [y.shape[-1] for y in linears(x, free, other)] == [4, 3]


def test_a_hook_or_a_forward_of_its_own_is_called(random: Callable[..., Tensor]) -> None:
    class Twice(torch.nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    x, plain, hooked, other = random(64, 8).float(), torch.nn.Linear(8, 4), torch.nn.Linear(8, 4), Twice(8, 4)
    hooked.register_forward_hook(lambda *given: torch.zeros_like(given[-1]))
    a, b, c = linears(x, plain, hooked, other)
    torch.testing.assert_close(a, plain(x))
    assert not b.any() and torch.equal(c, other(x))


def test_a_bias_that_is_added_later(monkeypatch: pytest.MonkeyPatch, random: Callable[..., Tensor]) -> None:
    """Not under autocast, where the next pass is PyTorch's."""
    pytest.importorskip("luthier.kernels.row_loops", reason="Numba is not installed")
    monkeypatch.setattr("luthier.kernels.processor.FEWEST", 0)
    layer, x = Linear(8, 4, bias=True).to_empty(device="cpu"), random(64, 8).float()
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    y, bias = product_and_bias(layer, x)
    assert bias is not None and bias is layer.bias
    torch.testing.assert_close(y + bias, layer(x))
    with torch.autocast("cpu", torch.bfloat16):
        y, bias = product_and_bias(layer, x)
    assert bias is None and y.dtype == torch.bfloat16
