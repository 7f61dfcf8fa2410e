"""Attention against float64 and a worked example, with packed documents and with a cache."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.kernels.attention import attention, attention_reference, document_starts, visible
from luthier.kernels.attention_tiles import settings
from luthier.kernels.launch import INTERPRETED


@pytest.mark.parametrize(("H", "K"), [(1, 1), (6, 2), (4, 1), (3, 3)])
@pytest.mark.parametrize(("B", "T", "D"), [(1, 1, 2), (2, 63, 16), (1, 123, 80), (3, 17, 32)])
@pytest.mark.parametrize("packed", [False, True])
def test_attention(
    B: int,
    T: int,
    D: int,
    H: int,
    K: int,
    packed: bool,
    within_budget: Callable[..., None],
    random: Callable[..., Tensor],
) -> None:
    inputs = [random(B, T, H, D), random(B, T, K, D, seed=1), random(B, T, K, D, seed=2)]
    mask = None
    if packed:
        lengths = torch.randint(0, 4, (B, T), generator=torch.Generator().manual_seed(3)) == 0
        mask = visible(document_starts(lengths.cumsum(1)), T)
    within_budget(lambda q, k, v: attention(q, k, v, mask), lambda q, k, v: attention_reference(q, k, v, mask), inputs)


@pytest.mark.parametrize("T", [1, 5])
def test_attention_of_the_last_queries_is_that_of_all(T: int, random: Callable[..., Tensor]) -> None:
    q, k, v = random(2, 20, 4, 8), random(2, 20, 2, 8, seed=1), random(2, 20, 2, 8, seed=2)
    torch.testing.assert_close(attention(q[:, -T:], k, v), attention_reference(q, k, v)[:, -T:])


def test_one_row_of_attention() -> None:
    """q = (ln 3)·√1 along one axis, keys 1 and 0: scores ln 3 and 0, weights 3/4 and 1/4, out = 3/4·8 + 1/4·4 = 7."""
    q = torch.tensor([[[[0.0]], [[math.log(3)]]]])
    k, v = torch.tensor([[[[1.0]], [[0.0]]]]), torch.tensor([[[[8.0]], [[4.0]]]])
    assert attention(q, k, v).flatten().tolist() == pytest.approx([8.0, 7.0])


def test_the_masks_of_the_lecture() -> None:
    starts = document_starts(torch.tensor([[5, 5, -1, -1], [1, 2, 2, 1]]))
    assert starts.tolist() == [[0, 0, 2, 2], [0, 1, 1, 3]]
    assert visible(starts, 4)[0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]


def test_derivatives(random: Callable[..., Tensor]) -> None:
    q, k, v = (random(1, 3, n, 4, seed=n, dtype=torch.float64).requires_grad_() for n in (2, 1, 1))
    check: Any = torch.autograd.gradcheck
    assert check(attention, (q, k, v))


@pytest.mark.parametrize(("K", "S", "named"), [(2, 2, "divisor of 3"), (3, 1, "S ≥ 2")])
def test_shapes_that_do_not_fit_are_named(K: int, S: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        attention(torch.ones(1, 2, 3, 4), torch.ones(1, S, K, 4), torch.ones(1, S, K, 4))


def seen(
    T: int, S: int, *, causal: bool = True, window: int | None = None, document: list[int] | None = None
) -> Tensor:
    """Which keys each query sees, one pair after the other; bool [1, T, S]."""
    mask = torch.zeros(1, T, S, dtype=torch.bool)
    for i in range(T):
        place = i + S - T
        for j in range(S):
            mask[0, i, j] = (
                not (causal and j > place)
                and (window is None or abs(place - j) < window)
                and (document is None or document[i] == document[j])
            )
    return mask


OPTIONS: list[dict[str, Any]] = [
    {},
    {"causal": False},
    {"window": 5},
    {"window": 5, "causal": False},
    {"soft_cap": 1.5},
    {"scale": 0.4},
]
LENGTHS = [1, 5, 2, 9]
DOCUMENTS = [0] + [1] * 5 + [2] * 2 + [3] * 9


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", OPTIONS)
def test_what_is_seen(
    options: dict[str, Any], packed: bool, within_budget: Callable[..., None], random: Callable[..., Tensor]
) -> None:
    inputs = [random(1, 17, 4, 8), random(1, 17, 2, 8, seed=1), random(1, 17, 2, 8, seed=2)]
    mask = seen(
        17, 17, causal=options.get("causal", True), window=options.get("window"), document=DOCUMENTS if packed else None
    )
    kept = {key: value for key, value in options.items() if key in ("soft_cap", "scale")}
    ends = torch.tensor([0, *LENGTHS]).cumsum(0) if packed else None
    within_budget(
        lambda q, k, v: attention(q, k, v, cu_seqlens=ends, **options),
        lambda q, k, v: attention_reference(q, k, v, mask, **kept),
        inputs,
    )
    within_budget(
        lambda q, k, v: attention(q, k, v, cu_seqlens=ends, return_lse=True, **options),
        lambda q, k, v: attention_reference(q, k, v, mask, return_lse=True, **kept),
        inputs,
    )


def test_documents_from_their_first_token_are_those_from_cu_seqlens(random: Callable[..., Tensor]) -> None:
    q, k, v = random(1, 17, 4, 8), random(1, 17, 2, 8, seed=1), random(1, 17, 2, 8, seed=2)
    first = document_starts(torch.tensor([DOCUMENTS]))
    ends = torch.tensor([0, *LENGTHS]).cumsum(0)
    expected = attention(q, k, v, visible(first, 17))
    torch.testing.assert_close(attention(q, k, v, first_BT=first), expected)
    torch.testing.assert_close(attention(q, k, v, cu_seqlens=ends), expected)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"cu_seqlens": torch.tensor([0, 3, 5])}, "cu_seqlens must rise from 0"),
        ({"cu_seqlens": torch.tensor([0, 4, 3, 6])}, "cu_seqlens must rise from 0"),
        ({"first_BT": torch.zeros(1, 5)}, "first_BT must be"),
        ({"first_BT": torch.zeros(1, 6), "causal": False}, "first_BT must be"),
        ({"window": 0}, "window is 0"),
        ({"soft_cap": -1.0}, "soft_cap is -1.0"),
        ({"mask_BTS": torch.ones(1, 6, 6, dtype=torch.bool), "window": 2}, "mask_BTS stands instead"),
        ({"impl": "triton"}, "impl='auto' would take PyTorch"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], named: str) -> None:
    if INTERPRETED:
        pytest.skip("the interpreter takes CPU tensors")
    x = torch.ones(1, 6, 1, 4)
    with pytest.raises(ValueError, match=named):
        attention(x, x, x, **options)


def test_dtypes_that_differ_are_named() -> None:
    x = torch.ones(1, 6, 1, 4)
    with pytest.raises(ValueError, match=r"q is torch\.float64, k is torch\.float32"):
        attention(x.double(), x, x, impl="torch")
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(x.bfloat16(), x, x, impl="torch").dtype == torch.bfloat16


# ---------------------------------------------------------------- the Triton kernels, on a card or interpreted


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tiles in both directions at lengths that the interpreter can bear."""
    if INTERPRETED:
        tiles = {"forward": (32, 16), "query": (32, 16), "key": (16, 32)}
        small = {part: {"BM": m, "BN": n, "num_warps": 4, "num_stages": 1} for part, (m, n) in tiles.items()}
        monkeypatch.setattr("luthier.kernels.attention_tiles.settings", lambda *a: small[a[3]])


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("T", "S", "options"),
    [
        (43, 43, {}),
        (1, 1, {}),
        (5, 40, {"soft_cap": 1.5}),
        (40, 5, {"causal": False}),
        (70, 70, {"window": 17}),
        (45, 45, {"window": 9, "causal": False}),
        (45, 45, {"document": [0] * 3 + [1] * 20 + [2] + [3] * 21}),
        (45, 45, {"document": [0] * 20 + [1] * 25, "causal": False, "window": 15}),
        (0, 0, {}),
    ],
)
def test_triton(
    T: int,
    S: int,
    options: dict[str, Any],
    card: torch.device,
    small_tiles: None,
    within_budget: Callable[..., None],
    random: Callable[..., Tensor],
) -> None:
    kept = dict(options)
    document = kept.pop("document", None)
    mask = seen(T, S, causal=kept.get("causal", True), window=kept.get("window"), document=document).to(card)
    if document is not None:
        counts = torch.tensor(document).unique_consecutive(return_counts=True)[1]
        kept["cu_seqlens"] = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]).to(card)
    inputs = [random(1, n, h, 16, seed=s).to(card) for s, (n, h) in enumerate([(T, 2), (S, 1), (S, 1)])]
    within_budget(
        lambda q, k, v: attention(q, k, v, impl="triton", return_lse=True, **kept),
        lambda q, k, v: attention_reference(q, k, v, mask, return_lse=True, soft_cap=kept.get("soft_cap")),
        inputs,
    )


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("H", "K", "D"), [(3, 3, 32), (4, 1, 80), (2, 1, 96), (1, 1, 256)])
def test_triton_heads(
    H: int,
    K: int,
    D: int,
    dtype: torch.dtype,
    card: torch.device,
    small_tiles: None,
    within_budget: Callable[..., None],
    random: Callable[..., Tensor],
) -> None:
    inputs = [random(1, 19, n, D, seed=s, dtype=dtype).to(card) for s, n in enumerate((H, K, K))]
    within_budget(lambda q, k, v: attention(q, k, v, impl="triton"), attention_reference, inputs)


@pytest.mark.gpu
def test_triton_with_padding_on_the_left_and_strides(
    card: torch.device, small_tiles: None, random: Callable[..., Tensor]
) -> None:
    q, k, v = (random(2, 1, 24, 16, seed=s).to(card).transpose(1, 2) for s in range(3))
    first = torch.tensor([0, 7], device=card)[:, None].minimum(torch.arange(24, device=card))
    expected = attention(q, k, v, visible(first, 24))
    torch.testing.assert_close(attention(q, k, v, first_BT=first, impl="triton"), expected)
    last = attention(q[:, -3:], k, v, first_BT=first[:, -3:], impl="triton")
    torch.testing.assert_close(last, expected[:, -3:])


@pytest.mark.gpu
def test_triton_gives_the_same_bits_twice(card: torch.device, small_tiles: None, random: Callable[..., Tensor]) -> None:
    q, k, v = (random(1, 33, 2, 16, seed=s).to(card).requires_grad_() for s in range(3))
    once, again = (torch.autograd.grad(attention(q, k, v, impl="triton").sum(), (q, k, v)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.gpu
def test_triton_refuses(card: torch.device) -> None:
    x = torch.ones(1, 4, 1, 300, device=card)
    with pytest.raises(ValueError, match="head_dim is 300"):
        attention(x, x, x, impl="triton")
    with pytest.raises(ValueError, match=r"k is torch.float16"):
        attention(x[..., :8], x[..., :8].half(), x[..., :8], impl="triton")
    with pytest.raises(ValueError, match="takes no mask_BTS"):
        attention(x, x, x, torch.ones(1, 4, 4, dtype=torch.bool, device=card), impl="triton")


def test_settings_are_powers_of_two_that_tensor_cores_take() -> None:
    for chip in (80, 86, 89, 90, 100, 120):
        for part in ("forward", "query", "key"):
            for head_dim in (16, 32, 64, 80, 96, 128, 256):
                s = settings(head_dim, 2, chip, part)
                assert s["BM"] % 16 == s["BN"] % 16 == 0
