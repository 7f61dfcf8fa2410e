"""Preferences: every form is read, and a row that cannot be used is named by file, line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.core.data.conversations import Message, read_conversations
from luthier.core.data.preferences import Preference, read_preferences
from luthier.core.errors import InputError

ASKED, BETTER, WORSE = (Message("user", "Q"),), (Message("assistant", "good"),), (Message("assistant", "bad"),)
USER, GOOD, BAD = ({"role": r, "content": c} for r, c in (("user", "Q"), ("assistant", "good"), ("assistant", "bad")))
ROWS: dict[str, dict[str, Any]] = {
    "texts": {"prompt": "Q", "chosen": "good", "rejected": " bad\n"},
    "messages": {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
    "whole conversations": {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
    "alpaca": {"instruction": "Q", "input": "", "output": "x", "chosen": "good", "rejected": "bad"},
    "openai": {"input": {"messages": [USER]}, "preferred_output": [GOOD], "non_preferred_output": [BAD]},
}


def read(folder: Path, *rows: Any) -> list[Preference]:
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_preferences(folder / "p.jsonl")


@pytest.mark.parametrize("form", ROWS)
def test_every_form_is_read(tmp_path: Path, form: str) -> None:
    assert read(tmp_path, ROWS[form]) == [Preference(ASKED, BETTER, WORSE, f"{tmp_path / 'p.jsonl'}:1")]


def test_only_the_last_answers_count(tmp_path: Path) -> None:
    (found,) = read(tmp_path, {"prompt": [USER, GOOD, USER], "chosen": [GOOD], "rejected": [BAD]})
    assert [m.trained for m in found.conversation(True)] == [True, False, True, True]
    assert [m.content for m in found.conversation(False)] == ["Q", "good", "Q", "bad"]
    (same,) = read(tmp_path, {"chosen": [USER, GOOD], "rejected": [USER, GOOD]})
    assert same.prompt == ASKED and same.chosen == same.rejected == BETTER


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x", "p.jsonl:1: expected one JSON object, found str"),
        ({"prompt": "Q", "chosen": "a"}, "p.jsonl:1: field 'rejected' is missing"),
        ({"prompt": "Q", "completion": "a"}, "p.jsonl:1: field 'chosen' is missing"),
        ({"prompt": "Q", "chosen": "a", "rejected": " "}, "p.jsonl:1: field 'rejected' is empty"),
        ({"prompt": "", "chosen": "a", "rejected": "b"}, "p.jsonl:1: field 'prompt' is empty"),
        ({"prompt": [USER], "chosen": [USER], "rejected": [BAD]}, "field 'chosen': expected to end with a message of"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "no prompt: 'chosen' and 'rejected' begin with different"),
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        (
            {"prompt": [{"role": "bot", "content": "x"}], "chosen": "a", "rejected": "b"},
            "prompt[0]: field 'role' is 'bot'",
        ),
    ],
)
def test_a_broken_row_is_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        read(tmp_path, row)
    assert message in str(error.value) and len(str(error.value).splitlines()) <= 3


def test_files_of_the_other_kind(tmp_path: Path) -> None:
    read(tmp_path, ROWS["texts"])
    with pytest.raises(
        InputError, match=r"p.jsonl:1: fields 'chosen' and 'rejected' are a preference\n.*objective dpo"
    ):
        read_conversations(tmp_path / "p.jsonl")
    with pytest.raises(InputError, match="no such file"):
        read_preferences(tmp_path / "none.jsonl")
    (tmp_path / "p.jsonl").write_text("\n")
    with pytest.raises(InputError, match="holds no preference"):
        read_preferences(tmp_path / "p.jsonl")


def test_a_public_file(data: Path) -> None:
    file = data / "instruct" / "llms_from_scratch_preference.jsonl"
    found = read_preferences(file)
    assert len(found) == sum(1 for line in file.open() if line.strip()) == 1100
