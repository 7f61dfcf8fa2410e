"""The frame of all benchmarks: turns, ratios, processes of their own, tables, the change since a saved result."""

import importlib
import json
import os
import sys

import numpy as np
import pytest

from luthier.core.benchmarks import report
from luthier.core.benchmarks.timing import (
    Tool,
    in_child,
    load_own,
    race,
    rate_row,
    rows_of,
    seconds_in_turn,
    seconds_row,
    thread_counts,
)
from luthier.core.errors import ConfigError, InputError


def test_ratio_above_one_means_ours_is_better():
    assert rate_row("x", "MB/s", 10, [1, 1, 1], "p", [2, 2, 2], True)["ratio"] == 2
    assert seconds_row("x", "s", [1, 1, 1], "p", [2, 2, 2], True)["ratio"] == 2
    assert seconds_row("x", "s", [1], "none", [], True)["ratio"] is None
    (below,) = rows_of("x", "points", {"ours": [-0.2], "p": [-0.8]}, {}, more_is_better=True)
    assert below["ratio"] is None and below["ours"] == -0.2  # better, and a quarter of it
    (row,) = rows_of("x", "MB", {"ours": [1.0], "p": [2.0]}, {}, more_is_better=False)
    assert row["ratio"] == 2


def test_tools_take_turns():
    heard = []
    taken = seconds_in_turn({"a": lambda: heard.append("a"), "b": lambda: heard.append("b")}, 2)
    assert "".join(heard) == "ababab"
    assert [len(seconds) for seconds in taken.values()] == [2, 2]


def test_every_tool_runs_right_after_garbage_was_collected(monkeypatch):
    heard = []
    monkeypatch.setattr("gc.collect", lambda: heard.append("-"))
    seconds_in_turn({"a": lambda: heard.append("a"), "b": lambda: heard.append("b")}, 2)
    assert "".join(heard) == "ab" + "-a-b-a-b"


def test_race_checks_first_prepares_each_time_and_has_a_row_of_noise():
    heard = []
    tools = {
        "ours": Tool(lambda given: given, 3.0, lambda result: result == "fresh", lambda: heard.append(1) or "fresh"),
        "p 1.0": Tool(lambda: 7, same=lambda result: result == 8),
        "q": Tool(lambda: 7, same=None),
    }
    rows = race("x", "MB/s", tools, 2, group="g", check="c")
    assert [(row["peer"], row["equal"]) for row in rows] == [("p 1.0", False), ("q", True), ("ours again", True)]
    assert len(heard) == 5  # the check, two rounds, ours again in both
    assert all((row["group"], row["check"]) == ("g", "c") for row in rows)


def test_when_ours_is_wrong_every_row_is():
    tools = {"ours": Tool(lambda: 7, same=lambda result: result == 8), "p": Tool(lambda: 8, same=lambda r: r == 8)}
    assert [row["equal"] for row in race("x", "s", tools, 1)] == [False, False]


def test_a_peer_that_fails_is_not_equal_and_the_others_go_on(capsys):
    tools = {"ours": Tool(lambda: 7), "p": Tool(lambda: 1 // 0), "q": Tool(lambda: 7)}
    rows = race("x", "s", tools, 1)
    assert [(row["peer"], row["equal"], row["theirs"] is None) for row in rows] == [
        ("p", False, True),
        ("q", True, False),
        ("ours again", True, False),
    ]
    assert "p failed: ZeroDivisionError" in capsys.readouterr().err
    assert "failed ≠" in report.tables(report.document("b", rows))
    with pytest.raises(ZeroDivisionError):
        race("x", "s", {"ours": Tool(lambda: 1 // 0)}, 1)


def test_a_slow_tool_sits_out():
    calls = []
    tools = {"ours": Tool(lambda: None), "slow": Tool(lambda: calls.append(1))}
    race("x", "s", tools, 10, budget=-1.0)
    assert len(calls) == 1 + 1  # the check; and no round but the first is given to whom the budget is spent


def test_thread_counts():
    assert thread_counts(1) == [1]
    assert thread_counts(2) == [1, 2]
    assert thread_counts(6) == [1, 2, 4, 6]


# ---------------------------------------------------------------- processes


IN_CHILD = """
import os

import numpy as np

from luthier.core.benchmarks.timing import most_memory


def hold(megabytes):
    np.ones(megabytes << 18)  # twice as much before
    with most_memory() as memory:
        np.ones(megabytes << 17)
    print("what a library prints")
    return os.environ["BENCH_TEST"], memory


def fail():
    raise ValueError("no")
"""


def test_a_process_of_its_own(capfd, tmp_path, monkeypatch):
    (tmp_path / "bench_in_child.py").write_text(IN_CHILD)
    monkeypatch.syspath_prepend(tmp_path)
    child = importlib.import_module("bench_in_child")
    found, memory = in_child(child.hold, 64, environment={"BENCH_TEST": "7"})
    assert found == "7" and "BENCH_TEST" not in os.environ
    if sys.platform == "linux":
        assert 60e6 < memory.most - memory.before < 90e6
    assert "what a library prints" not in capfd.readouterr().out
    with pytest.raises(ValueError, match="no"):
        in_child(child.fail)
    with pytest.raises(RuntimeError, match=r"_exit died in its process \(exit code 3\)"):
        in_child(os._exit, 3)


# ---------------------------------------------------------------- a user's own


def test_load_own(tmp_path):
    (tmp_path / "own.py").write_text("def f():\n    return 7\nx = 3\n")
    name, function = load_own(f"{tmp_path}/own.py:f")
    assert name == "f (own.py)" and function() == 7
    for given, said in (("own.py", "expected FILE.py:FUNCTION"), ("no.py:f", "no file"), ("own.py:x", "no function x")):
        with pytest.raises(ConfigError, match=said):
            load_own(f"{tmp_path}/{given}")


# ---------------------------------------------------------------- tables and the change


def result_of(ours, theirs=100.0, again=None, cpu="A", equal=True):
    values = {"ours": ours, "peer 1.2": [theirs], "other 3": [theirs / 2]}
    values["ours again"] = [again or float(np.median(ours))]
    rows = rows_of("case", "MB/s", values, {"peer 1.2": equal}, group="g", check="the same ids")
    result = report.document("b", rows)
    result["machine"]["cpu"] = cpu
    return result


def test_the_table_shows_the_fastest_peer_and_what_is_not_equal():
    table = report.tables(result_of([150.0], again=153.0))
    assert "1.50 × peer" in table and "±2.0%" in table and "1.50 × the best peer, 1 or better in 1 of 1: g" in table
    table = report.tables(result_of([150.0], equal=False))
    assert "3.00 × other" in table and "100 ≠" in table and "NOT EQUAL: g case, peer 1.2 (the same ids)" in table
    lines = [line for line in table.splitlines() if line.startswith("  ")]
    assert len(lines) == 2 and "\033" not in table
    assert "\033[31m" in report.tables(result_of([150.0], equal=False), colour=True)


def test_a_change_within_noise_is_marked():
    then = result_of([100.0, 100.0, 100.0])
    assert "+2.0%   ±2.9%   within noise" in report.the_change(result_of([102.0], again=105.06), then)
    assert "+30.0%   ±0.0%   better" in report.the_change(result_of([130.0]), then)
    assert "-50.0%" in report.the_change(result_of([50.0]), then) and "worse" in report.the_change(
        result_of([50.0]), then
    )


def test_another_machine_is_compared_by_ratio():
    told = report.the_change(result_of([300.0], theirs=200.0, cpu="B"), result_of([100.0]))
    assert "which ran on A" in told and "1.50" in told and "+50.0%" in told


def test_new_cases_are_counted():
    now, then = result_of([1.0]), result_of([1.0])
    then["rows"] = []
    assert "1 cases are not in that result" in report.the_change(now, then)


def test_reading_a_saved_result(tmp_path):
    result = result_of([1.0])
    (tmp_path / "a.json").write_text(json.dumps(result, indent=1))
    (tmp_path / "b.txt").write_text("a table\n" + json.dumps(result) + "\n")
    assert report.read(tmp_path / "a.json", "b") == result == report.read(tmp_path / "b.txt", "b")
    with pytest.raises(InputError, match="no result of luthier bench kernels"):
        report.read(tmp_path / "a.json", "kernels")


def test_a_saved_part_keeps_the_others(tmp_path, monkeypatch):
    """What was not measured again stays, with its commit; another machine's or other versions' does not."""
    monkeypatch.chdir(tmp_path)

    def result(commit, *cases, torch="1", omp=""):
        rows = [{"group": g, "case": case, "metric": "s", "ours": n} for g, case, n in cases]
        machine = {"cpu": "Intel(R) Xeon(R) Processor", "load": 0.1}
        about = {"bench": "b", "machine": machine, "versions": {"torch": torch}, "time": "now"}
        about["threads"] = {"OMP_NUM_THREADS": omp}
        return {**about, "commit": commit, "rows": rows}

    path = report.save(result("a", ("speed", "one", 1), ("speed", "two", 1), ("quality", "x, 3 seeds: -1 to +2", 1)))
    assert path.name.startswith("b-intel-xeon-2")
    report.save(result("b", ("speed", "two", 2), ("quality", "x, 10 seeds: +0 to +2", 2)))
    found = json.loads(path.read_text())
    assert [(row["case"], row["ours"]) for row in found["rows"]] == [
        ("one", 1),
        ("two", 2),
        ("x, 10 seeds: +0 to +2", 2),
    ]
    assert [(piece["commit"], piece["groups"]) for piece in found["pieces"]] == [
        ("a", ["speed"]),
        ("b", ["speed", "quality"]),
    ]
    report.save(result("c", ("memory", "one", 3)))
    assert [piece["commit"] for piece in json.loads(path.read_text())["pieces"]] == ["a", "b", "c"]
    report.save(result("d", ("memory", "one", 4), torch="2"))
    assert [row["ours"] for row in json.loads(path.read_text())["rows"]] == [4]
    other = report.save(result("e", ("memory", "one", 5), torch="2", omp="2"))
    assert other.stem == f"{path.stem}-2-threads" and [json.loads(other.read_text())["commit"]] == ["e"]
    assert json.loads(path.read_text())["commit"] == "d"
