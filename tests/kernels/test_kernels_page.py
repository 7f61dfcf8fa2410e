"""The code of docs/kernels.md runs as it stands, and its numbers are those of the formulas."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from luthier.kernels import attention, rms_norm

PAGE = Path(__file__).parents[2] / "docs" / "kernels.md"


def test_the_code_runs() -> None:
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))
    assert code.count("assert") >= 8
    room: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), room)


def test_the_numbers() -> None:
    moved, operations = rms_norm.cost(rows=8192, columns=4096, itemsize=2)["forward"]
    assert round(moved / 1e6) == 134 and round(operations / 1e6) == 134 and round(moved / 4.8e12 * 1e6) == 28
    moved, operations = attention.cost(batch=1, tokens=8192, heads=32, key_heads=8, head_dim=128, itemsize=2)["forward"]
    assert round(moved / 1e6) == 169 and round(operations / 1e9) == 550 and round(operations / 989e12 * 1e3, 2) == 0.56
