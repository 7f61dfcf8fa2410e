"""The documentation inside Python: real English, in the same order, without running or importing anything."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from luthier.core.data.general import MODULES, REPEATED, module_text, python_documentation, topic_texts


@pytest.fixture(scope="module")
def documentation() -> dict[str, str]:
    rows = list(python_documentation())
    assert len(rows) == len(dict(rows))
    return dict(rows)


def test_it_is_about_two_megabytes_of_english(documentation: dict[str, str]) -> None:
    assert 1.5e6 < sum(len(text.encode()) for text in documentation.values()) < 2.5e6
    words = " ".join(documentation.values()).lower().split()
    assert len(words) > 200_000
    assert sum(word in ("the", "of", "to", "a", "is", "and", "in") for word in words) / len(words) > 0.1
    assert all(text.strip() and text.endswith("\n") and not text.endswith("\n\n") for text in documentation.values())


def test_a_module_gives_what_pydoc_would(documentation: dict[str, str]) -> None:
    """Independent answer: `inspect.getdoc` of the imported objects."""
    import inspect

    for thing, name in ((textwrap, "textwrap"), (textwrap.TextWrapper, "textwrap.TextWrapper")):
        assert f"{name}\n\n{inspect.getdoc(thing)}".strip() in documentation["textwrap"]
    assert documentation["textwrap"].index("textwrap.wrap\n") < documentation["textwrap"].index("textwrap.fill\n")
    assert "assert" in documentation["pydoc_data.topics: assert"]


def test_nothing_is_imported() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "from luthier.core.data.general import python_documentation, MODULES\n"
        "names = [name for name, _ in python_documentation()]\n"
        "loaded = {'turtle', 'tkinter', 'pydoc_data.topics', 'doctest', 'smtplib', 'imaplib'} & set(sys.modules)\n"
        "assert not loaded, loaded\nprint(len(names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > len(MODULES) * 0.9


def test_names_come_with_the_docstrings_and_repeats_are_left_out() -> None:
    source = b'''
"""Head."""
if True:
    def f():
        """Of f,

            indented.
        back.
        """
try:
    class C:
        """Of C."""
        async def g(self):
            """Of g."""
        def h(self):
            """Of g."""
except ImportError:
    def k():
        """Of k."""
def nothing(): pass
'''
    expected = "m\n\nHead.\n\nm.f\n\nOf f,\n\n    indented.\nback.\n\nm.C\n\nOf C.\n\nm.C.g\n\nOf g.\n\nm.k\n\nOf k.\n"
    assert module_text(source, "m") == expected


@pytest.mark.parametrize(
    "form", ["topics = {!r}", "topics: dict[str, str] = {!r}", "# head\ntopics = {{'a': r'''{}''', 'b': r'''{}'''}}"]
)
def test_topics_of_every_version_are_read(form: str) -> None:
    long = "x" * REPEATED
    values = {"a": f"A\n***\n\n{long}\n", "b": f"B\n***\n\n{long}\n\nmore \\n\n"}
    source = form.format(values) if "!r" in form else form.format(*values.values())
    found = dict(topic_texts(source.encode()))
    assert found == {"pydoc_data.topics: a": f"A\n***\n\n{long}\n", "pydoc_data.topics: b": "B\n***\n\nmore \\n\n"}


def test_what_this_python_lacks_is_skipped_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "json").mkdir()
    (tmp_path / "json" / "__init__.py").write_text('"""JSON."""')
    (tmp_path / "abc.pyc").write_bytes(b"\0")
    assert list(python_documentation(tmp_path)) == [("json", "json\n\nJSON.\n")]
    assert f"{len(MODULES)} of {len(MODULES) + 1} modules" in capsys.readouterr().err
