"""What every kernel says about what it cannot take: the argument by its name, what is allowed, before any launch; and
that looking costs a compiled model nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from luthier.kernels.adamw import adamw_step
from luthier.kernels.adamw_8bit import adamw_8bit_step, empty_state
from luthier.kernels.attention import attention
from luthier.kernels.cross_entropy import cross_entropy, log_probs
from luthier.kernels.decode_attention import decode_attention
from luthier.kernels.launch import INTERPRETED
from luthier.kernels.layer_norm import layer_norm
from luthier.kernels.linear_cross_entropy import linear_cross_entropy, linear_log_probs
from luthier.kernels.lora import lora_linear
from luthier.kernels.muon import newton_schulz, symmetric_product
from luthier.kernels.rms_norm import add_rms_norm, rms_norm
from luthier.kernels.rope import rope, rope_
from luthier.kernels.swiglu import geglu, swiglu

Call = Callable[..., Any]
F, I = torch.float32, torch.int64


def t(*shape: int, dtype: torch.dtype = F, device: str = "cpu") -> Any:
    return torch.ones(shape, dtype=dtype, device=device)


def eight(impl: Any = "auto", p: Any = None, g: Any = None) -> None:
    p = t(3) if p is None else p
    adamw_8bit_step(p, t(3) if g is None else g, empty_state(t(3)), step=1, lr=0.1, impl=impl)


def adam(impl: Any = "auto", p: Any = None, g: Any = None) -> None:
    lists = [[t(3) if x is None else x] for x in (p, g, None, None)]
    adamw_step(*lists, step=1, lr=0.1, impl=impl)


LENGTHS = torch.tensor([4], dtype=torch.int32)
# Every public function on a small case that is right; `impl` may be given.
RIGHT: dict[str, Call] = {
    "attention": lambda **how: attention(t(1, 4, 2, 8), t(1, 4, 1, 8), t(1, 4, 1, 8), **how),
    "decode_attention": lambda **how: decode_attention(t(1, 1, 2, 8), t(1, 4, 1, 8), t(1, 4, 1, 8), LENGTHS, **how),
    "rms_norm": lambda **how: rms_norm(t(2, 3), t(3), **how),
    "add_rms_norm": lambda **how: add_rms_norm(t(2, 3), t(2, 3), t(3), **how),
    "layer_norm": lambda **how: layer_norm(t(2, 3), t(3), t(3), **how),
    "rope": lambda **how: rope(t(1, 2, 1, 4), t(2, 2), t(2, 2), **how),
    "rope_": lambda **how: rope_(t(1, 2, 1, 4), t(2, 2), t(2, 2), **how),
    "swiglu": lambda **how: swiglu(t(2, 3), t(2, 3), **how),
    "geglu": lambda **how: geglu(t(2, 3), t(2, 3), **how),
    "cross_entropy": lambda **how: cross_entropy(t(2, 3), t(2, dtype=I), **how),
    "linear_cross_entropy": lambda **how: linear_cross_entropy(t(2, 4), t(3, 4), t(2, dtype=I), **how),
    "adamw_step": adam,
    "adamw_8bit_step": eight,
    "symmetric_product": lambda **how: symmetric_product(t(1, 3, 4), **how),
    "lora_linear": lambda **how: lora_linear(t(2, 4), t(3, 4), t(1, 4), t(3, 1), scale=1.0, **how),
}


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
@pytest.mark.parametrize("name", RIGHT)
def test_triton_without_a_card_says_what_auto_would_do(name: str) -> None:
    RIGHT[name](impl="auto")
    with pytest.raises(ValueError, match=f"{name}: impl='triton' cannot run here: .*impl='auto' would take PyTorch"):
        RIGHT[name](impl="triton")
    with pytest.raises(ValueError, match="impl is 'gpu'; it may be 'auto', 'triton' or 'torch'"):
        RIGHT[name](impl="gpu")


q, k = t(1, 4, 2, 8), t(1, 4, 1, 8)
far, whole = "meta", t(3, 4, dtype=I)
WRONG: dict[str, tuple[Call, str]] = {
    "attention: three dimensions": (lambda: attention(q[0], k[0], k[0]), r"q, k and v must be \[B, T, H, D\]"),
    "attention: heads": (lambda: attention(t(1, 4, 3, 8), t(1, 4, 2, 8), t(1, 4, 2, 8)), "a divisor of 3"),
    "attention: no key head": (lambda: attention(q, k[:, :, :0], k[:, :, :0]), "a divisor of 2"),
    "attention: head_dim": (lambda: attention(q, t(1, 4, 1, 6), t(1, 4, 1, 6)), r"divisor of 2, 8\]"),
    "attention: integers": (lambda: attention(q, k.long(), k), "k is torch.int64; it must be a floating-point"),
    "attention: device": (lambda: attention(q, k, k.to(far)), "v is on meta, q is on cpu; move one to the other"),
    "attention: mask": (lambda: attention(q, k, k, t(1, 4, 4)), r"mask_BTS must be bool \[1 or 1, 4, 4\]"),
    "attention: first": (lambda: attention(q, k, k, first_BT=t(1, 4)), "first_BT must be integers on cpu"),
    "attention: cu_seqlens as floats": (lambda: attention(q, k, k, cu_seqlens=t(2)), "must be integers in one"),
    "attention: cu_seqlens end": (lambda: attention(q, k, k, cu_seqlens=torch.tensor([0, 3])), "rise from 0 to the"),
    "attention: empty document": (lambda: attention(q, k, k, cu_seqlens=torch.tensor([0, 2, 2, 4])), "rise from 0"),
    "decode: dimensions": (lambda: decode_attention(q[0], k, k, LENGTHS), "four dimensions"),
    "decode: int64": (lambda: decode_attention(q[:, :1], k, k, LENGTHS.long()), "lengths_B must be int32"),
    "decode: device": (lambda: decode_attention(q[:, :1], k, k, LENGTHS.to(far)), r"int32 \[1\] on cpu"),
    "decode: keys": (lambda: decode_attention(q[:, :1], k, k[:, :3], LENGTHS), "found k"),
    "rms_norm: size": (lambda: rms_norm(t(2, 3), t(4)), r"weight has shape \(4,\), x needs \(3,\)"),
    "rms_norm: integers": (lambda: rms_norm(t(2, 3, dtype=I), t(3)), "x is torch.int64"),
    "rms_norm: device": (lambda: rms_norm(t(2, 3), t(3, device=far)), "weight is on meta, x is on cpu"),
    "rms_norm: one number": (lambda: rms_norm(t(), t()), "weight has shape"),
    "add_rms_norm: residual": (lambda: add_rms_norm(t(2, 3), t(2, 3).half(), t(3)), "they must be equal"),
    "layer_norm: bias": (lambda: layer_norm(t(2, 3), t(3), t(2)), r"bias has shape \(2,\)"),
    "layer_norm: device": (lambda: layer_norm(t(2, 3), t(3), t(3, device=far)), "bias is on meta"),
    "rope: odd": (lambda: rope(t(1, 2, 1, 5), t(2, 2), t(2, 2)), "head_dim be even"),
    "rope: dimensions": (lambda: rope(t(2, 4), t(2, 2), t(2, 2)), r"it must be \[B, T, H, D\]"),
    "rope: positions": (lambda: rope(t(1, 2, 1, 4), t(3, 2), t(3, 2)), r"cos and sin must end in \(2, 2\)"),
    "swiglu: shapes": (lambda: swiglu(t(2, 3), t(3, 2)), r"gate has shape \(2, 3\), up has \(3, 2\)"),
    "swiglu: device": (lambda: swiglu(t(2, 3), t(2, 3, device=far)), "up is on meta"),
    "geglu: kind": (lambda: geglu(t(2), t(2), approximate="erf"), "may be 'tanh' or 'none'"),  # pyright: ignore
    "cross_entropy: label": (lambda: cross_entropy(t(1, 3), torch.tensor([3])), "label 3 is outside"),
    "cross_entropy: labels": (lambda: cross_entropy(t(2, 3), t(2)), r"labels must be int64 \(2,\)"),
    "cross_entropy: device": (lambda: cross_entropy(t(2, 3), t(2, dtype=I, device=far)), "labels are on meta"),
    "log_probs: label": (lambda: log_probs(t(1, 3), torch.tensor([-1])), "label -1"),
    "linear: sizes": (lambda: linear_cross_entropy(t(2, 4), t(3, 5), t(2, dtype=I)), r"x must be \[..., 5\]"),
    "linear: dimensions": (lambda: linear_cross_entropy(t(2, 4), t(4), t(2, dtype=I)), r"weight must be \[V, C\]"),
    "linear: device": (lambda: linear_log_probs(t(2, 4), t(3, 4, device=far), t(2, dtype=I)), "weight is on meta"),
    "adamw: shapes": (lambda: adam(g=t(4)), r"grads\[0\] is \(4,\)"),
    "adamw: integers": (lambda: adam(p=t(3, dtype=I)), r"params\[0\] is torch.int64"),
    "adamw: device": (lambda: adam(g=t(3, device=far)), "on meta"),
    "adamw_8bit: shapes": (lambda: eight(g=t(4)), "make them equal"),
    "adamw_8bit: integers": (lambda: eight(p=t(3, dtype=I)), "p is torch.int64"),
    "muon: dimensions": (lambda: newton_schulz(t(3, 3)), r"updates must be matrices \[N, rows, columns\]"),
    "muon: integers": (lambda: newton_schulz(whole[None]), "updates is torch.int64"),
    "muon: add": (lambda: symmetric_product(t(1, 3, 4), t(1, 4, 4)), r"add \[N, R, R\] is"),
    "lora: rank": (lambda: lora_linear(t(2, 4), t(3, 4), t(2, 4), t(3, 1), scale=1.0), r"b \[3, 2\]"),
    "lora: dimensions": (lambda: lora_linear(t(2, 4), t(4), t(2, 4), t(3, 1), scale=1.0), r"weight \[N, C\]"),
    "lora: device": (lambda: lora_linear(t(2, 4), t(3, 4), t(1, 4, device=far), t(3, 1), scale=1.0), "a is on meta"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_named(what: str) -> None:
    call, named = WRONG[what]
    with pytest.raises(ValueError, match=named) as caught:
        call()
    assert str(caught.value).count("\n") < 3 and type(caught.value).__module__ in ("builtins", "luthier.kernels.launch")


def test_a_card_that_is_too_old_is_not_passed_over_in_silence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from luthier.kernels import launch

    class Old:
        is_cuda, device = True, torch.device("cuda:0")

    monkeypatch.setattr(launch, "_obstacle", lambda device: "the card has compute capability 7.5, the kernels need 8.0")
    launch._say.cache_clear()
    with caplog.at_level("WARNING", "luthier"):
        assert not any(launch.use_triton("rope", "auto", Old()) for _ in range(3))  # pyright: ignore[reportArgumentType]
    assert caplog.text.count("compute capability 7.5") == 1 and "PyTorch does the work" in caplog.text
    with pytest.raises(ValueError, match="compute capability"):
        launch.use_triton("rope", "triton", Old())  # pyright: ignore[reportArgumentType]


COMPILED = ("attention", "rms_norm", "add_rms_norm", "layer_norm", "rope", "swiglu", "geglu", "lora_linear")


def compile_as_one_graph() -> None:
    for name in COMPILED:
        expected = RIGHT[name]()
        found = torch.compile(RIGHT[name], fullgraph=True, backend="aot_eager")()
        for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, expected)), strict=True):
            torch.testing.assert_close(a, b)
        print(name)


@pytest.mark.skipif(INTERPRETED, reason="here Triton's kernels would be traced")
def test_a_model_is_compiled_as_one_graph() -> None:
    """In a process of its own: PyTorch's compiler does not know the poisoned torch.empty of these tests."""
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split() == list(COMPILED), done.stderr[-2000:]


if __name__ == "__main__":
    compile_as_one_graph()
