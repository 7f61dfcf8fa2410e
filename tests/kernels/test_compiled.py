"""Every kernel compiled for every chip without a card: it fits, it does not spill, it uses the tensor cores, and one
compilation serves all lengths."""

from __future__ import annotations

import os
from importlib import import_module

import pytest
import torch

from luthier.kernels import attention
from luthier.kernels.proof import CHIPS, KERNELS, compiled_for, report

# Kernels with a matrix product, by file; the others move memory and need none.
PRODUCTS = {
    "attention": ("forward", "backward_key", "backward_query"),
    "decode_attention": ("split",),
    "muon": ("symmetric",),
    "lora": ("product",),
}
INSTRUCTION = {80: "mma", 86: "mma", 89: "mma", 90: "wgmma", 100: "tcgen05", 120: "mma"}
# Bytes a thread may keep in memory for want of registers; none where nothing is said. The gradients of keys and values
# fill half of all registers, so the rest, used once a tile, goes out.
SPILLS = {"forward": 32, "backward_key": 320, "backward_query": 64, "symmetric": 512}

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
        assert kernel.stack <= SPILLS.get(kernel.name, 0), kernel
        assert kernel.registers <= 255 and kernel.registers * kernel.threads <= 65536, kernel
        if kernel.name in PRODUCTS.get(name, ()):
            small = name == "decode_attention"  # 16 rows: too few for the large tiles of sm_90 and sm_100
            assert ("mma" if small else INSTRUCTION[arch]) in kernel.products.split(), kernel


@pytest.mark.parametrize("name", KERNELS)
def test_one_compilation_for_all_lengths(name: str) -> None:
    """Kernels that differ in their constants are compiled apart; the same ones for another length are not."""
    module = import_module(f"luthier.kernels.{name}")
    once = compiled_for(90, lambda: module.trial(512))
    often = compiled_for(90, lambda: [module.trial(length) for length in (512, 1, 2, 17, 160, 333)])
    assert once and often == once


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("arch", [89, 90])
def test_attention_of_every_head_dim(arch: int, head_dim: int, dtype: torch.dtype) -> None:
    found = compiled_for(arch, lambda: attention.trial(64, dtype, head_dim, packed=True))
    assert all(kernel.shared <= CHIPS[arch][1] for kernel in found)
    assert all(kernel.products for kernel in found if kernel.name in PRODUCTS["attention"])
