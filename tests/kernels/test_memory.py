"""What the kernels hold of a card's memory beyond inputs, results and gradients, during a forward and a backward pass.

On a card only: in the interpreter there is no such memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.attention import attention
from luthier.kernels.cross_entropy import cross_entropy
from luthier.kernels.linear_cross_entropy import linear_cross_entropy
from luthier.kernels.lora import lora_linear
from luthier.kernels.rms_norm import rms_norm
from luthier.kernels.swiglu import swiglu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


def inputs(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(s, device="cuda", dtype=torch.bfloat16).requires_grad_() for s in shapes]


def beyond(call: Callable[..., Tensor], given: list[Tensor]) -> int:
    """Bytes at the peak that are neither there before nor results nor gradients."""
    for _ in range(2):  # the first time compiles
        for x in given:
            x.grad = None
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        out = call(*given)
        out.sum().backward()
        torch.cuda.synchronize()
    results = [out, *(x.grad for x in given if x.grad is not None)]
    return torch.cuda.max_memory_allocated() - before - sum(x.numel() * x.element_size() for x in results)


def test_attention_holds_no_scores() -> None:
    """T² scores of 8 heads would be 256 MB; what is there is lse and δ, and the gradient of the result."""
    B, T, H, D = 1, 4096, 8, 64
    given = inputs((B, T, H, D), (B, T, H, D), (B, T, H, D))
    assert beyond(lambda q, k, v: attention(q, k, v), given) <= 3 * B * T * H * D * 2 + 16 * B * H * T


def test_the_loss_holds_no_logits() -> None:
    """At most 5% of the logits, in bfloat16."""
    N, C, V = 4096, 512, 32000
    labels = torch.randint(V, (N,), device="cuda")
    most = beyond(lambda x, w: linear_cross_entropy(x, w, labels)[0], inputs((N, C), (V, C)))
    assert most <= 0.05 * N * V * 2, f"{most / (N * V * 2):.1%} of the logits"


def test_a_loss_of_each_row_holds_no_logits() -> None:
    N, C, V = 4096, 512, 32000
    labels = torch.randint(V, (N,), device="cuda")
    call: Any = lambda x, w: linear_cross_entropy(x, w, labels, reduction="none")[0]  # noqa: E731
    assert beyond(call, inputs((N, C), (V, C))) <= 0.05 * N * V * 2


def test_the_loss_of_logits_holds_its_gradient_only() -> None:
    N, V = 1024, 32000
    labels = torch.randint(V, (N,), device="cuda")
    assert beyond(lambda z: cross_entropy(z, labels), inputs((N, V))) <= 0.01 * N * V * 2 + (1 << 20)


def test_row_by_row_nothing_but_a_number_a_row() -> None:
    """Beside the gradient of the result: one number a row, and each program's sum of dg."""
    N, C = 8192, 4096
    result = N * C * 2
    assert beyond(lambda x, w: rms_norm(x, w), inputs((N, C), (C,))) <= 2 * result + (32 << 20)
    assert beyond(lambda a, b: swiglu(a, b), inputs((N, C), (N, C))) <= 2 * result + (8 << 20)


def test_adapters_hold_thin_products_only() -> None:
    M, C, N, r = 8192, 1024, 1024, 16
    w = torch.randn(N, C, device="cuda", dtype=torch.bfloat16)
    given = inputs((M, C), (r, C), (N, r))
    thin = 8 * M * r * 2 + (8 << 20)
    assert beyond(lambda x, a, b: lora_linear(x, w, a, b, scale=1.0), given) <= 2 * M * N * 2 + thin
