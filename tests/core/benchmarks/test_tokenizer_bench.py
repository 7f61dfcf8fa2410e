"""The benchmark of tokenizers: rows of the agreed shape, equal results, JSON on the last line. Times are not judged."""

import json

import pytest

from luthier.core.benchmarks.timing import rate_row, seconds_in_turn, seconds_row
from luthier.core.errors import ConfigError
from luthier.scripts.bench import main

KEYS = {"case", "metric", "ours", "peer", "theirs", "ratio", "equal", "p20", "p80"}


def test_bench_tokenizers(tmp_path, capsys, monkeypatch):
    (tmp_path / "a.txt").write_text("The soundboard is spruce. It's 1,250 °C, naïve 東京.\n" * 40, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["tokenizers", "--text", "a.txt", "--repeats", "1", "--save"]) == 0
    *_, last = capsys.readouterr().out.strip().splitlines()
    result = json.loads(last)
    assert result["bench"] == "tokenizers"
    assert {"machine", "versions", "commit", "threads", "rows"} <= result.keys()
    assert all(row.keys() == KEYS and row["equal"] for row in result["rows"])
    assert {row["peer"].split()[0] for row in result["rows"]} == {"tiktoken", "tokenizers", "ours"}
    (saved,) = (tmp_path / "docs" / "benchmarks").iterdir()
    assert json.loads(saved.read_text()) == result


def test_ratio_above_one_means_ours_is_better():
    assert rate_row("x", "MB/s", 10, [1, 1, 1], "p", [2, 2, 2], True)["ratio"] == 2
    assert seconds_row("x", "s", [1, 1, 1], "p", [2, 2, 2], True)["ratio"] == 2
    assert seconds_row("x", "s", [1], "none", [], True)["ratio"] is None


def test_tools_take_turns():
    heard = []
    taken = seconds_in_turn({"a": lambda: heard.append("a"), "b": lambda: heard.append("b")}, 2)
    assert "".join(heard) == "ababab"
    assert [len(seconds) for seconds in taken.values()] == [2, 2]


def test_wrong_use():
    with pytest.raises(ConfigError, match="vectors takes no --vocab"):
        main(["vectors", "--vocab", "x"])
    with pytest.raises(ConfigError, match="repeats = 0"):
        main(["tokenizers", "--repeats", "0"])
