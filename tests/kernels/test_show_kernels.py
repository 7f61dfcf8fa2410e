"""`luthier show kernel:NAME`: resources and roofline."""

from __future__ import annotations

import os

import pytest

from luthier.core.errors import InputError
from luthier.core.show.kernels import show_kernel


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="here nothing is compiled")
def test_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    show_kernel("kernel:rope")
    printed = capsys.readouterr().out
    assert printed.startswith("kernels/rope.py: Rotary positions")
    assert "tokens 8,192" in printed and "H200, ms" in printed and "134,217,728" in printed  # 2 · 8192·32·128 · 2 bytes
    assert "sm_90 (H100, H200)" in printed or "Triton is not installed" in printed


def test_an_unknown_kernel_is_named() -> None:
    with pytest.raises(InputError, match="no kernel 'fft'"):
        show_kernel("kernel:fft")
