"""Every kernel compiled for every chip without a card: it fits, it does not spill, it uses the tensor cores, and one
compilation serves all lengths."""

from __future__ import annotations

import os

import pytest

from luthier.kernels.proof import CHIPS, KERNELS, compiled_for, report

# Kernels with a matrix product, by file; the others move memory and need none.
PRODUCTS: dict[str, tuple[str, ...]] = {}
INSTRUCTION = {80: "mma", 86: "mma", 89: "mma", 90: "wgmma", 100: "tcgen05", 120: "mma"}

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="here nothing is compiled")


@pytest.fixture(autouse=True)
def triton_is_there() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: nothing was compiled")


@pytest.mark.parametrize("arch", CHIPS)
@pytest.mark.parametrize("name", KERNELS)
def test_resources(name: str, arch: int) -> None:
    found = report(name, arch)
    assert found
    for kernel in found:
        assert kernel.shared <= CHIPS[arch][1], kernel
        assert kernel.stack == 0, kernel
        assert kernel.registers <= 255 and kernel.registers * kernel.threads <= 65536, kernel
        if kernel.name in PRODUCTS.get(name, ()):
            assert INSTRUCTION[arch] in kernel.products.split(), kernel


@pytest.mark.parametrize("name", KERNELS)
def test_one_compilation_for_all_lengths(name: str) -> None:
    """Kernels that differ in their constants are compiled apart; the same ones for another length are not."""
    from importlib import import_module

    module = import_module(f"luthier.kernels.{name}")
    once = compiled_for(90, lambda: module.trial(512))
    often = compiled_for(90, lambda: [module.trial(length) for length in (512, 1, 2, 17, 160, 333)])
    assert often == once
