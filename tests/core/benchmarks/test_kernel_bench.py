"""`luthier bench kernels`: it runs on a bare machine, its gate finds what is wrong, its last line is the document."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from luthier.core.benchmarks.kernel_cases import KERNELS
from luthier.core.benchmarks.kernel_tuning import CLASSES, compile_one, tune
from luthier.core.benchmarks.kernels import gate, main, run, small_of, where_to_run
from luthier.core.errors import ConfigError
from luthier.kernels import proof, tables
from luthier.kernels.launch import LaunchError

ROOT = Path(__file__).parents[3]
# A sitecustomize that lets nothing in but the standard library, this project and what a rented machine has.
BARE = """
import sys, sysconfig

allowed = {"torch", "torchgen", "functorch", "triton", "numpy", "luthier", *ALSO, *sys.stdlib_module_names}
needed_by_torch = {"typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "filelock", "fsspec"}
tried = {"sitecustomize", "usercustomize", "apport_python_hook"}  # what Python itself looks for

class Bare:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in allowed | needed_by_torch | tried and not top.startswith(("_", "nvidia")):
            raise ModuleNotFoundError(f"No module named {name!r}: a bare GPU machine has no more", name=name)

sys.meta_path.insert(0, Bare())
"""


def bare(tmp_path: Path, command: list[str], *also: str) -> subprocess.CompletedProcess[str]:
    """Run Python from the source tree, not installed, with all other packages out of reach."""
    (tmp_path / "sitecustomize.py").write_text(BARE.replace("*ALSO", ", ".join(map(repr, also)) + "," if also else ""))
    path = os.pathsep.join([str(tmp_path), str(ROOT / ".types")])
    environment = {**os.environ, "PYTHONPATH": path, "NO_COLOR": "1"}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def test_a_bare_machine_will_do(tmp_path: Path) -> None:
    out = tmp_path / "kept.json"
    command = ["-m", "luthier.scripts.bench", "kernels", "rope", "swiglu", "--repeats", "1", "--out", str(out)]
    done = bare(tmp_path, command)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.strip().rpartition("\n")[2])
    assert result["bench"] == "kernels" and json.loads(out.read_text())["rows"] == result["rows"]
    assert {row["group"] for row in result["rows"]} == {"peaks", "rope", "swiglu"}
    assert all(row["equal"] for row in result["rows"])
    if not torch.cuda.is_available():
        assert "the PyTorch twins are timed on the CPU, not the kernels" in done.stdout


def test_the_kernels_tests_need_no_more(tmp_path: Path) -> None:
    """What `pytest -m gpu tests/kernels` imports, pytest's own packages aside."""
    files = [
        str(p.relative_to(ROOT)) for p in (ROOT / "tests/kernels").glob("test_*.py") if "mark.gpu" in p.read_text()
    ]
    pytests = ("pytest", "pluggy", "iniconfig", "packaging", "pygments")
    command = ["-m", "pytest", "-q", "--collect-only", "-m", "gpu", "-p", "no:cacheprovider", *files]
    done = bare(tmp_path, command, *pytests)
    assert done.returncode == 0 and "rms_norm" in done.stdout, done.stdout[-2000:] + done.stderr[-1000:]


def test_every_kernel_file_is_measured() -> None:
    assert set(proof.KERNELS) <= set(KERNELS)


@pytest.mark.parametrize("name", KERNELS)
def test_the_gate_passes_ours_and_finds_what_is_wrong(name: str) -> None:
    where = where_to_run("float32")
    small = KERNELS[name].build(where, small_of(KERNELS[name], KERNELS[name].cpu))
    ours = small.tools["ours"]
    assert gate(small, ours) == []

    def wrong(*inputs: Any) -> Any:
        if small.steps:
            ours(*inputs)
            inputs[0][0].mul_(1.01)
            return None
        found = ours(*inputs)
        return tuple(1.01 * x for x in found) if isinstance(found, tuple) else 1.01 * found

    assert gate(small, wrong)


def test_a_function_of_ones_own_is_raced_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def good(gate, up):\n    return gate * torch.sigmoid(gate) * up\n"
        "def bad(gate, up):\n    return torch.sigmoid(gate) * up\n"
    )
    options: Any = {"names": ["swiglu"], "shape": (31, 64), "repeats": 1}
    rows = [row for row in run(own=f"{tmp_path}/mine.py:good", **options) if row["peer"].startswith("good")]
    assert rows and all(row["equal"] and row["ratio"] for row in rows) and "N 31, F 64" in rows[0]["case"]
    command = ["swiglu", "--shape", "31,64", "--repeats", "1", "--with", f"{tmp_path}/mine.py:bad"]
    assert main(command) == 1
    printed = capsys.readouterr()
    assert "NOT EQUAL" in printed.out and "may be" in printed.err


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["rmsnorm"], "did you mean 'rms_norm'"),
        (["--shape", "1,2"], "name it"),
        (["rms_norm", "--shape", "1,2,3"], "rms_norm takes N,C"),
        (["rms_norm", "--shape", "1,x"], "expected whole numbers"),
        (["rms_norm", "--dtype", "int8"], "there are bfloat16"),
        (["rms_norm", "--repeats", "0"], "expected 1 or more"),
        (["rms_norm", "--with", "gone.py:f"], "no file gone.py"),
        (["--tune", "--tables", "here"], "--tune needs an NVIDIA card"),
    ],
)
def test_wrong_usage_is_named(command: list[str], named: str) -> None:
    if "--tune" in command and torch.cuda.is_available():
        pytest.skip("here it would tune")
    with pytest.raises(ConfigError, match=named):
        main(command)


def test_only_kernels_with_tables_are_tuned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("luthier.core.benchmarks.kernel_tuning.machine", lambda: {"gpu": "Card"})
    with pytest.raises(ConfigError, match="rope has no table"):
        tune(["rope"], folder=tmp_path)


def test_candidates_are_compiled_where_no_card_is() -> None:
    pytest.importorskip("triton", reason="Triton is not installed: nothing was compiled")
    decode = next(one for one in CLASSES if one.kernel == "decode_attention")
    compiled = decode._replace(tried=[{"BN": 32}, {"BN": 48}])  # 48 is no power of two
    assert [compile_one((compiled, n), dtype="bfloat16", arch=90) for n in (-1, 0, 1)] == [False, False, True]


def test_ours_failing_is_a_row_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build(*_: Any) -> Any:
        raise RuntimeError("no such card")

    monkeypatch.setitem(KERNELS, "rope", replace(KERNELS["rope"], build=build))
    assert main(["rope", "swiglu", "--repeats", "1"]) == 1
    printed = capsys.readouterr()
    rows = json.loads(printed.out.strip().rpartition("\n")[2])["rows"]
    assert [row["equal"] for row in rows if row["group"] == "rope"] == [False]
    assert all(row["equal"] for row in rows if row["group"] == "swiglu") and "no such card" in printed.err


def test_against_another_card(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tmp_path / "before.json"
    assert main(["rope", "--repeats", "1", "--out", str(before)]) == 0
    assert main(["rope", "--repeats", "1", "--against", str(before)]) == 0
    assert "GB/s" in capsys.readouterr().out.split("since ")[1]
    then = json.loads(before.read_text())
    then["machine"]["gpu"] = "NVIDIA H200"
    before.write_text(json.dumps(then))
    assert main(["rope", "--repeats", "1", "--against", str(before)]) == 0
    assert "which ran on NVIDIA H200" in capsys.readouterr().out


# ---------------------------------------------------------------- tables


@pytest.fixture
def a_card(monkeypatch: pytest.MonkeyPatch) -> Callable[[Tensor], Any]:
    """A stand-in for a tensor on a card, which is all that `chosen` looks at."""
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA Test 9")

    class OnCard:
        is_cuda, device = True, None

    return lambda _: OnCard()


def test_a_table_is_read_and_the_rule_serves_otherwise(
    a_card: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key, x = tables.key_of("muon symmetric", torch.bfloat16), a_card(None)
    rule = {"BM": 64, "num_warps": 4}
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    tables._table.cache_clear()
    assert tables.chosen(key, rule, x) == rule
    table = tables.file_of("NVIDIA Test 9", tmp_path)
    assert table.name == "nvidia-test-9.json"
    table.write_text(json.dumps({"classes": {key: {"settings": {"BM": 128}}}}))
    tables._table.cache_clear()
    assert tables.chosen(key, rule, x) == {"BM": 128, "num_warps": 4}
    assert tables.chosen("lora product, bfloat16, rank 16", rule, x) == rule
    with tables.trying(key, {"BM": 32}):
        assert tables.chosen(key, rule, torch.ones(1))["BM"] == 32
    table.write_text("{}")
    tables._table.cache_clear()
    with pytest.raises(LaunchError, match=r"nvidia-test-9\.json: not a table of settings"):
        tables.chosen(key, rule, x)
    tables._table.cache_clear()


def test_a_gate_is_cut_in_its_lengths_only() -> None:
    assert small_of(KERNELS["attention"], (2, 8192, 32, 8, 64)) == (1, 130, 32, 8, 64)
    assert small_of(KERNELS["linear_cross_entropy"], (8192, 64, 1000)) == (140, 64, 1000)


def test_a_peer_that_fails_has_a_row_without_times(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = KERNELS["rope"]

    def fails(x: Tensor) -> Tensor:
        raise RuntimeError("no such backend")

    def build(*given: Any) -> Any:
        problem = kernel.build(*given)
        return replace(problem, tools={**problem.tools, "broken": fails})

    monkeypatch.setitem(KERNELS, "rope", replace(kernel, build=build))
    rows = [row for row in run(names=["rope"], repeats=1) if row["peer"] == "broken"]
    assert rows and all(row["theirs"] is None and not row["equal"] for row in rows)
