"""Templates taken apart, tables read, texts written once each; what was there is not lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.artifacts import read_jsonl
from luthier.core.assistant.assistant import Assistant, AssistantConfig
from luthier.core.assistant.write import Ask, Column, _filled, read_rows, read_template, write
from luthier.core.errors import ArtifactError, InputError

TEMPLATE = """\
# file: {customer}.txt
Dear {customer},
your {thing} is ready. {ask: What does {job} cost?}
{{in braces}}
"""
DATA = "customer,thing,job\nLucia,guitar,fret levelling\nEmil,violin,the tuning of a harp\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "t.txt").write_text(TEMPLATE, encoding="utf-8")
    (tmp_path / "d.csv").write_text(DATA, encoding="utf-8")
    return tmp_path / "t.txt", tmp_path / "d.csv"


def test_one_text_a_row_with_facts_and_their_source(tmp_path: Path, files: tuple[Path, Path], index: Path) -> None:
    summary = write(*files, tmp_path / "out", model=None, index=index)
    assert (tmp_path / "out" / "Lucia.txt").read_text(encoding="utf-8") == (
        "Dear Lucia,\nyour guitar is ready. Fret levelling – Price: CHF 180, Time: 3 days\n{in braces}\n"
    )
    assert "[not found: What does the tuning of a harp cost?]" in (tmp_path / "out" / "Emil.txt").read_text()
    assert (summary.written, summary.kept, summary.asked, summary.not_found) == (2, 0, 2, 1)
    assert [f.name for f in summary.files] == ["Lucia.txt", "Emil.txt"]
    rows = list(read_jsonl(tmp_path / "out" / "answers.jsonl"))
    assert [(r["row"], r["file"]) for r in rows] == [(1, "Lucia.txt"), (2, "Emil.txt")]
    assert rows[0]["answers"][0]["source"]["path"] == "prices.csv"
    assert rows[1]["answers"][0]["path"] == "none"
    assert "texts written" in str(summary)


def test_a_second_run_writes_nothing_and_asks_nothing(
    tmp_path: Path, files: tuple[Path, Path], index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write(*files, out, model=None, index=index)
    (out / "Lucia.txt").write_text("corrected by hand")
    monkeypatch.setattr(Assistant, "answers", lambda *_: pytest.fail("asked again"))
    again = write(*files, out, model=None, index=index)
    assert (again.written, again.kept) == (0, 2)
    assert (out / "Lucia.txt").read_text() == "corrected by hand"


def test_a_killed_run_goes_on(
    tmp_path: Path, files: tuple[Path, Path], index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the first row, with half a line in the journal: only the second row is written."""
    out = tmp_path / "out"
    write(*files, out, model=None, index=index)
    whole = (out / "Emil.txt").read_text()
    lines = (out / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (out / "answers.jsonl").write_bytes(lines[0] + lines[1][:40])
    (out / "Emil.txt").unlink()
    again = write(*files, out, model=None, index=index)
    assert (again.written, again.kept) == (1, 1)
    assert (out / "Emil.txt").read_text() == whole
    assert len(list(read_jsonl(out / "answers.jsonl"))) == 2


def test_new_rows_join_and_changed_ones_need_overwrite(tmp_path: Path, files: tuple[Path, Path], index: Path) -> None:
    template, data = files
    out = tmp_path / "out"
    write(template, data, out, model=None, index=index)
    data.write_text(DATA + "Noor,cello,a neck reset\n")
    assert write(template, data, out, model=None, index=index).written == 1
    assert "CHF 640" in (out / "Noor.txt").read_text()
    data.write_text(DATA.replace("guitar", "lute"))
    with pytest.raises(ArtifactError, match=r"Lucia\.txt exists and was written from another"):
        write(template, data, out, model=None, index=index)
    assert "guitar" in (out / "Lucia.txt").read_text()
    assert write(template, data, out, model=None, index=index, overwrite=True).written == 1
    assert "lute" in (out / "Lucia.txt").read_text()
    config = AssistantConfig(min_score=0.99)
    with pytest.raises(ArtifactError, match="--overwrite"):
        write(template, data, out, model=None, index=index, config=config)


def test_a_strangers_file_is_not_overwritten(tmp_path: Path, files: tuple[Path, Path], index: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "Emil.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="was not written by luthier"):
        write(*files, out, model=None, index=index)
    assert (out / "Emil.txt").read_text() == "mine"


def test_a_template_without_questions_needs_no_assistant(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("Hello {who}")
    (tmp_path / "d.csv").write_bytes("\ufeffwho;x\nJörg;1\n\nÅsa;2\n".encode())
    write(tmp_path / "t.txt", tmp_path / "d.csv", tmp_path / "out", model=None, index=None)
    assert (tmp_path / "out" / "row-0001.txt").read_text(encoding="utf-8") == "Hello Jörg"
    assert (tmp_path / "out" / "row-0002.txt").read_text(encoding="utf-8") == "Hello Åsa"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("customr,thing,job\na,b,c\n", r"d\.csv has no column 'customer'; did you mean 'customr'\?"),
        ("customer,thing,job\na,b,c\na,b\n", r"d\.csv:3: row 2 has 2 cells, the header has 3"),
        ("customer,thing,job\na,b,c\nd,,c\n", r"d\.csv:3: row 2: column 'thing' is empty"),
        ("customer,thing,job\na,b,c\na,x,y\n", r"row 2 and row 1 would both be written to a\.txt"),
        ("", r"d\.csv is empty"),
        ('customer,thing,job\n"a,b,c\n', r"d\.csv:\d: not a CSV table"),
    ],
)
def test_a_table_that_does_not_fit(
    tmp_path: Path, files: tuple[Path, Path], index: Path, data: str, message: str
) -> None:
    files[1].write_text(data)
    with pytest.raises(InputError, match=message):
        write(*files, tmp_path / "out", model=None, index=index)
    assert not list((tmp_path / "out").glob("*.txt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\nb } c", r"t\.txt:2: a closing brace"),
        ("a\n\n{name", r"t\.txt:3: an opening brace"),
        ("{}", r"t\.txt:1: \{\} is neither"),
        ("# file: x\n{ask: }", r"t\.txt:2: \{ask: …\} needs one question"),
        ("{aks: what?}", r"neither a \{column\} nor \{ask: question\}"),
        ("{ask: what {ask: why?}}", r"needs one question"),
    ],
)
def test_a_template_with_a_mistake_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_template(tmp_path / "t.txt")


def test_missing_and_wrongly_encoded_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_template(tmp_path / "none.txt")
    (tmp_path / "t.txt").write_bytes(b"a\xff")
    with pytest.raises(InputError, match="not UTF-8 at byte 1"):
        read_template(tmp_path / "t.txt")


def test_file_names_are_made_safe(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("# file: {n}.txt\nx")
    (tmp_path / "d.csv").write_text("n\n../../etc/passwd\na:b\n")
    summary = write(tmp_path / "t.txt", tmp_path / "d.csv", tmp_path / "out", model=None, index=None)
    assert [f.name for f in summary.files] == ["-..-etc-passwd.txt", "a-b.txt"]
    assert all(f.parent == tmp_path / "out" and f.is_file() for f in summary.files)


@given(st.lists(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\r"), max_size=8), max_size=5))
def test_text_without_placeholders_stays_as_it_is(tmp_path_factory: pytest.TempPathFactory, pieces: list[str]) -> None:
    """Escaped braces come back as they were; columns between them are recognised."""
    file = tmp_path_factory.mktemp("t") / "t.txt"
    body = "x" + "{c}".join(p.replace("{", "{{").replace("}", "}}") for p in pieces)
    file.write_text(body, encoding="utf-8", newline="\n")
    parts = read_template(file).parts
    assert not any(isinstance(p, Ask) for p in parts)
    assert sum(isinstance(p, Column) for p in parts) == max(0, len(pieces) - 1)
    filled = _filled([p for p in parts if not isinstance(p, Ask)], {"c": "|"})
    assert filled == "x" + "|".join(pieces)


def test_rows_of_tabs_and_quotes(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text('a\tb\n"x\ty"\t"line\nbreak"\n')
    assert read_rows(tmp_path / "d.csv", ["a"]) == [{"a": "x\ty", "b": "line\nbreak"}]
    assert json.dumps(read_rows(tmp_path / "d.csv", []))


def test_texts_are_not_written_among_what_a_stage_made(files: tuple[Path, Path], index: Path) -> None:
    with pytest.raises(ArtifactError, match="holds what another stage made"):
        write(*files, index, model=None, index=index)
