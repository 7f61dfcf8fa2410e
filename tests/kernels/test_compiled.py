"""Every kernel compiled for every chip without a card: it fits, it does not spill, it uses the tensor cores, a thread
reads 16 bytes at once, and one compilation serves all lengths.

With LUTHIER_ALL_CHIPS=1 attention is compiled for every head_dim and dtype besides, which takes minutes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch

from luthier.kernels import tables
from luthier.kernels.proof import CHIPS, KERNELS, Compiled, for_other_lengths, report

# Kernels with a matrix product, by file; the others move memory and need none.
PRODUCTS = {
    "attention": ("forward", "backward_key", "backward_query"),
    "decode_attention": ("split",),
    "muon": ("symmetric",),
    "lora": ("product",),
}
INSTRUCTION = {80: "mma", 86: "mma", 89: "mma", 90: "wgmma", 100: "tcgen05", 120: "mma"}
# Bytes a thread may keep in memory for want of registers; none where nothing is said. The gradients of keys and values
# fill half of all registers, so the rest, used once a tile, goes out. The symmetric product spills after its loop,
# where a tile and its mirror image are written.
SPILLS = {"forward": 32, "backward_key": 320, "backward_query": 64, "symmetric": 512}
SPILLS_OF_OLD = {("symmetric", 100): 640}  # Triton 3.6
OLD = find_spec("triton") is not None and version("triton").startswith("3.6.")

pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="here nothing is compiled")


@pytest.mark.proof.with_args(lambda name, arch: partial(report, name, arch))
@pytest.mark.parametrize("arch", CHIPS)
@pytest.mark.parametrize("name", KERNELS)
def test_resources(name: str, arch: int, proof: Callable[[], list[Compiled]]) -> None:
    found = proof()
    assert found
    for kernel in found:
        assert kernel.shared <= CHIPS[arch][1], kernel
        stated = SPILLS.get(kernel.name, 0)
        assert kernel.stack <= (SPILLS_OF_OLD.get((kernel.name, arch), stated) if OLD else stated), kernel
        assert kernel.registers <= 255 and kernel.registers * kernel.threads <= 65536, kernel
        assert kernel.widest == 16, kernel
        if kernel.name in PRODUCTS.get(name, ()):
            small = name == "decode_attention"  # 16 rows: too few for the large tiles of sm_90 and sm_100
            assert ("mma" if small else INSTRUCTION[arch]) in kernel.products.split(), kernel


@pytest.mark.proof.with_args(lambda name: partial(for_other_lengths, name, 90))
@pytest.mark.parametrize("name", KERNELS)
def test_one_compilation_for_all_lengths(name: str, proof: Callable[[], list[Compiled]]) -> None:
    """Kernels that differ in their constants are compiled apart; the same ones for another length are not."""
    assert proof() == report(name, 90)


EVERYTHING = os.environ.get("LUTHIER_ALL_CHIPS") == "1"
HEADS = [
    (arch, head_dim, dtype)
    for arch in ((89, 90) if EVERYTHING else (90,))
    for head_dim in ((32, 64, 80, 96, 128, 256) if EVERYTHING else (80, 256))
    for dtype in ((torch.bfloat16, torch.float32) if EVERYTHING else (torch.bfloat16,))
]


@pytest.mark.proof.with_args(lambda arch, **head: partial(report, "attention", arch, 64, packed=True, **head))
@pytest.mark.parametrize(("arch", "head_dim", "dtype"), HEADS)
def test_attention_of_other_head_dims(
    arch: int, head_dim: int, dtype: torch.dtype, proof: Callable[[], list[Compiled]]
) -> None:
    found = proof()
    assert all(kernel.shared <= CHIPS[arch][1] for kernel in found)
    assert all(kernel.products for kernel in found if kernel.name in PRODUCTS["attention"])


def test_tables_compile() -> None:
    """Every entry of every card's table, for that card's chip."""
    pytest.importorskip("triton", reason="Triton is not installed: nothing was compiled")
    for file in tables.FOLDER.glob("*.json"):
        table = json.loads(file.read_text(encoding="utf-8"))
        arch = int(table["machine"]["capability"].replace(".", ""))
        for key, entry in table["classes"].items():
            with tables.trying(key, entry["settings"]):
                found = report(key.split()[0], arch)
            assert all(kernel.shared <= CHIPS[arch][1] for kernel in found), (file.name, key)
