"""Tiles of registers give what all scores under a mask give: outputs, gradients, and where they are taken."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from luthier.kernels import processor
from luthier.kernels import tiled_attention as module
from luthier.kernels.attention import attention, attention_reference, document_starts, visible
from luthier.kernels.document_attention import document_attention, document_texts
from luthier.kernels.tiled_attention import fits, tiled_attention

loops = pytest.importorskip("luthier.kernels.tiled_loops", reason="Numba is not installed")


@pytest.fixture(autouse=True)
def intel(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on the processors where tiles are the faster way, whatever this one is."""
    monkeypatch.setattr(module, "tiled_loops", lambda: loops)


SHAPES = [(1, 1, 1, 1, 32), (3, 63, 4, 2, 32), (1, 123, 6, 1, 96), (2, 130, 3, 3, 64), (1, 257, 2, 1, 32)]
SHAPES += [(2, 50, 2, 1, 16), (1, 140, 4, 2, 48), (1, 37, 2, 2, 80)]


@pytest.mark.parametrize(("B", "T", "H", "K", "D"), SHAPES)
def test_equal_to_the_formula(
    B: int, T: int, H: int, K: int, D: int, within_budget: Callable[..., None], random: Callable[..., Tensor]
) -> None:
    within_budget(
        lambda q, k, v: (
            tiled_attention(q, k, v, scale=0.3) if q.dtype == torch.float32 else attention(q, k, v, scale=0.3)
        ),
        lambda q, k, v: attention_reference(q, k, v, scale=0.3),
        [random(B, T, H, D), random(B, T, K, D, seed=1), random(B, T, K, D, seed=2)],
    )


def test_large_scores_from_any_layout(within_budget: Callable[..., None], random: Callable[..., Tensor]) -> None:
    """Scores of some hundreds; heads before tokens in memory."""
    within_budget(
        lambda q, k, v: tiled_attention(
            q.mT.contiguous().mT, k.transpose(1, 2).contiguous().transpose(1, 2), v, scale=0.3
        ),
        lambda q, k, v: attention_reference(q, k, v, scale=0.3),
        [20 * random(2, 140, 4, 32), random(2, 140, 2, 32, seed=1), random(2, 140, 2, 32, seed=2)],
    )


DOCUMENTS = [[[130, 20], [1, 40, 100, -9]], [[70, 80], [-150]], [[150], [12, 13, 125]]]


@pytest.mark.parametrize("lengths", DOCUMENTS)
@pytest.mark.parametrize("threads", [1, 2])
def test_documents_are_equal_to_the_mask(
    lengths: list[list[int]],
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
    within_budget: Callable[..., None],
    random: Callable[..., Tensor],
) -> None:
    if threads == 2 and module._shares() is None:
        pytest.skip("this PyTorch has another OpenMP")
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    taken: list[int] = []
    monkeypatch.setattr(module, "_run", lambda *given, run=module._run: (taken.append(1), run(*given)))
    runs = [[torch.full((abs(n),), i if n > 0 else -1) for i, n in enumerate(row)] for row in lengths]
    document = torch.stack([torch.cat(row) for row in runs])
    mask, real = visible(document_starts(document), 150), (document >= 0)[:, :, None, None]
    within_budget(
        lambda q, k, v: document_attention(q, k, v, document_texts(document)),
        lambda q, k, v: attention_reference(q, k, v, mask) * real,
        [random(2, 150, 6, 32), random(2, 150, 3, 32, seed=1), random(2, 150, 3, 32, seed=2)],
    )
    assert taken


def test_a_document_spoils_no_other(random: Callable[..., Tensor]) -> None:
    """Tiles read beyond a text's end what a longer one left there."""
    given = [random(1, 150, 2, 32, seed=s).requires_grad_() for s in range(3)]
    texts = torch.tensor([[0, 100], [100, 50]])

    def slopes() -> list[Tensor]:
        out = tiled_attention(given[0], given[1], given[2], scale=0.3, texts_n2=texts)
        return [x[:, 100:] for x in (out, *torch.autograd.grad(out.square().sum(), given))]

    expected = slopes()
    with torch.no_grad():
        for x in given:
            x[:, :100] = torch.nan
    assert all(torch.equal(a, b) for a, b in zip(slopes(), expected, strict=True))


def test_what_comes_later_spoils_nothing(random: Callable[..., Tensor]) -> None:
    q, k, v = (random(1, 150, 2, 32, seed=s).float() for s in range(3))
    expected = tiled_attention(q, k, v, scale=0.3)
    k[:, 100] = torch.nan
    found = tiled_attention(q, k, v, scale=0.3)
    assert torch.equal(found[:, :100], expected[:, :100]) and found[:, 100:].isnan().all()


@pytest.mark.skipif(module._shares() is None, reason="this PyTorch has another OpenMP")
def test_the_same_bits_for_one_thread_and_two(monkeypatch: pytest.MonkeyPatch, random: Callable[..., Tensor]) -> None:
    def slopes() -> list[Tensor]:
        q, k, v = (random(3, 150, 3, 32, seed=s).requires_grad_() for s in range(3))
        out = tiled_attention(q, k, v, scale=0.3)
        return [out, *torch.autograd.grad(out.square().sum(), [q, k, v])]

    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    one = slopes()
    assert all(torch.equal(a, b) for a, b in zip(one, slopes(), strict=True))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert all(torch.equal(a, b) for a, b in zip(one, slopes(), strict=True))


def test_taken_for_whole_texts_alone(monkeypatch: pytest.MonkeyPatch, random: Callable[..., Tensor]) -> None:
    """Not for short texts, other dtypes and heads, last queries, a mask or a window, or many threads."""
    calls: list[int] = []
    monkeypatch.setattr(
        module, "tiled_attention", lambda q, k, v, scale: (calls.append(1), tiled_attention(q, k, v, scale=scale))[1]
    )
    q, k = random(1, 130, 2, 32), random(1, 130, 2, 32, seed=1)
    attention(q, k, k)
    assert calls == [1]
    attention(q[:, :100], k[:, :100], k[:, :100])
    attention(q[..., :30], k[..., :30], k[..., :30])
    attention(q.double(), k.double(), k.double())
    attention(q[:, -5:], k, k)
    attention(q, k, k, window=7)
    attention(q, k, k, causal=False)
    with torch.autocast("cpu", torch.bfloat16):
        attention(q, k, k)
    assert calls == [1] and not fits(q.to("meta"), k.to("meta"))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert not fits(q, k)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(module, "_shares", lambda: None)
    assert not fits(q, k)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert fits(q, k)
    monkeypatch.setattr(module, "tiled_loops", lambda: None)
    assert not fits(q, k)


def test_compiled(random: Callable[..., Tensor]) -> None:
    """In one graph, with the same bits; one tensor as queries, keys and values, too."""
    given = [random(2, 130, 4, 32).requires_grad_(), *(random(2, 130, 2, 32, seed=s).requires_grad_() for s in (1, 2))]

    def slopes(call: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(call(*given).square().sum(), given)

    compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)
    assert all(torch.equal(a, b) for a, b in zip(slopes(compiled), slopes(attention), strict=True))
    assert torch.equal(compiled(given[0], given[0], given[0]), attention(given[0], given[0], given[0]))


@pytest.mark.parametrize(
    ("make", "capability", "said"),
    [
        ("AuthenticAMD", "AVX512", "attention in bands"),
        ("GenuineIntel", "AVX512", "attention in tiles (up to 2 threads)"),
        ("GenuineIntel", "AVX2", "attention fused"),
        ("Other", "AVX512", "attention fused"),
    ],
)
def test_a_processor_is_known_by_its_make(
    make: str, capability: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Facts:
        def __init__(self, _: object) -> None: ...

        def read_text(self) -> str:
            return f"processor : 0\nvendor_id : {make}\n"

    monkeypatch.setattr(processor, "_avx512", processor._avx512.__wrapped__)
    monkeypatch.setattr(processor, "Path", Facts)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert said in processor.ways() and processor.ways().startswith(f"{capability}: products by ")


FEWER = """
import torch
from luthier.kernels import processor, tiled_attention as module
module.tiled_loops = lambda: processor.compiled("tiled_loops")
torch.set_num_threads(2)
q, k, v = torch.randn(1, 256, 4, 32), torch.randn(1, 256, 2, 32), torch.randn(1, 256, 2, 32)
assert module._shares() is not None
found = module.tiled_attention(q, k, v, scale=0.3)
torch.set_num_threads(1)
assert torch.equal(found, module.tiled_attention(q, k, v, scale=0.3))
"""


@pytest.mark.skipif(module._shares() is None, reason="this PyTorch has another OpenMP")
def test_where_there_is_no_second_thread_the_first_does_all() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "OMP_THREAD_LIMIT": "1"}
    subprocess.run([sys.executable, "-c", FEWER], env=environment, check=True, timeout=300)


def test_scores_far_below_all_others() -> None:
    q, k, v = torch.full((1, 4, 1, 32), 1e18), torch.full((1, 4, 1, 32), -1e18), torch.randn(1, 4, 1, 32)
    assert torch.allclose(tiled_attention(q, k, v, scale=1.0)[0, 3, 0], v[0].mean(0)[0], atol=1e-6)
