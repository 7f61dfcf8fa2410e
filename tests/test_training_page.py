"""The students' page on training is a program: its Python says what it shows."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "training.md").read_text(encoding="utf-8")


def test_every_python_block_says_what_it_shows() -> None:
    """One after the other, as a reader would paste them."""
    blocks = "\n".join(re.findall(r"(?ms)^```python\n(.*?)^```", PAGE))
    page = doctest.DocTestParser().get_doctest(blocks, {}, "docs/training.md", None, 0)
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.REPORT_NDIFF).run(page, out=said.append)
    assert result.attempted > 20
    assert result.failed == 0, "".join(said)
