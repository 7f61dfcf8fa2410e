"""Artefacts are whole or absent, known by content, written by one process. Kills are simulated where they can fall."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.core import artifacts
from luthier.core.artifacts import (
    Artifact,
    atomic_open,
    content_hash,
    hash_file,
    manifest_hash,
    read_json,
    read_jsonl,
    read_manifest,
    write_json,
    write_jsonl,
)
from luthier.core.errors import ArtifactError, InputError, LockedError


class Killed(BaseException):
    """Stands for kill -9: nothing below catches it, and no clean-up of ours may rely on running after it."""


def make(out: Path, text: str = "one", *, overwrite: bool = False, **inputs: Path | str) -> Artifact:
    work = Artifact(out, "encode", {"n": (1, 2)}, inputs or {"corpus": text}, overwrite=overwrite)
    if not work.done:
        with work:
            (work.folder / "data.txt").write_text(text)
    return work


def kill_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Die at the `step`-th rename of a folder from now on."""
    real, count = Path.rename, [0]

    def rename(self: Path, target: Path) -> Path:
        count[0] += 1
        if count[0] == step:
            raise Killed
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)


# ---------------------------------------------------------------- files


def test_atomic_open_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(Killed), atomic_open(file) as out:
        out.write("half")
        raise Killed
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_lines_round_trip_and_a_broken_line_is_named(tmp_path: Path) -> None:
    rows = [{"a": 1, "ü": "ß\u2028x"}, {"b": [1, None]}]
    assert write_jsonl(tmp_path / "x.jsonl", rows) == 2
    assert list(read_jsonl(tmp_path / "x.jsonl")) == rows
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n\n{"a": \n')
    (tmp_path / "odd.jsonl").write_text('{"n": ' + "9" * 5000 + "}\n" + '{"n": ' + "[" * 10**6 + "\n")
    odd = read_jsonl(tmp_path / "odd.jsonl")
    assert next(odd) == {"n": float("inf")}
    with pytest.raises(InputError, match=r"odd\.jsonl:2: its values are nested too deeply"):
        next(odd)
    with pytest.raises(InputError, match=r"bad\.jsonl:3: not valid JSON"):
        list(read_jsonl(tmp_path / "bad.jsonl"))
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(InputError, match=r"list\.jsonl:1: expected one JSON object"):
        list(read_jsonl(tmp_path / "list.jsonl"))
    (tmp_path / "bad.json").write_text('{"a": 1,\n}')
    with pytest.raises(InputError, match=r"bad\.json:2:1"):
        read_json(tmp_path / "bad.json")


def test_hashes_against_known_values(tmp_path: Path) -> None:
    """sha256 of "abc" is the example of FIPS 180-2, appendix B.1."""
    (tmp_path / "f").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert hash_file(tmp_path / "f") == content_hash(tmp_path / "f") == known


def test_content_hash_of_a_folder_follows_names_and_bytes(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    for folder in (a, b):
        folder.mkdir()
        (folder / "x").write_text("1")
    assert content_hash(a) == content_hash(b)
    (b / "x").rename(b / "y")
    assert content_hash(a) != content_hash(b)
    with pytest.raises(InputError, match="no such file or folder"):
        content_hash(tmp_path / "none")


def test_another_programs_manifest_makes_no_artefact(tmp_path: Path) -> None:
    """Web applications have a manifest.json too."""
    (tmp_path / "manifest.json").write_text('{"name": "app", "icons": []}')
    assert len(content_hash(tmp_path)) == 64
    with pytest.raises(ArtifactError, match="not written by luthier"):
        read_manifest(tmp_path)
    with pytest.raises(ArtifactError, match="was not made by luthier"):
        make(tmp_path)


# ---------------------------------------------------------------- one artefact


def test_a_finished_artefact_tells_what_it_is(tmp_path: Path) -> None:
    make(tmp_path / "out")
    manifest = read_manifest(tmp_path / "out", "encode")
    assert manifest["settings"] == {"n": [1, 2]}
    assert manifest["inputs"] == {"corpus": "one"}
    assert manifest["outputs"] == {"data.txt": hash_file(tmp_path / "out" / "data.txt")}
    assert {"seconds", "command", "versions"} <= manifest["run"].keys()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["data.txt", "manifest.json"]
    with pytest.raises(ArtifactError, match="made by `luthier encode`, expected the output of `luthier collect`"):
        read_manifest(tmp_path / "out", "collect")


def test_same_work_is_done_and_other_work_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert not make(out).done
    assert make(out).done
    with pytest.raises(ArtifactError, match="holds different work: corpus has changed"):
        make(out, "two")
    assert (out / "data.txt").read_text() == "one"
    make(out, "two", overwrite=True)
    assert (out / "data.txt").read_text() == "two"


def test_a_folder_of_somebody_else_is_refused_and_an_empty_one_is_used(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ArtifactError, match="was not made by luthier"):
        make(tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    make(tmp_path / "empty")
    assert read_manifest(tmp_path / "empty")


def test_a_lost_output_is_made_again(tmp_path: Path) -> None:
    make(tmp_path / "out")
    (tmp_path / "out" / "data.txt").unlink()
    assert not make(tmp_path / "out").done
    assert (tmp_path / "out" / "data.txt").read_text() == "one"


def test_the_hash_leaves_time_and_host_out(tmp_path: Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    a, b = read_manifest(tmp_path / "a"), read_manifest(tmp_path / "b")
    assert manifest_hash(a) == manifest_hash({**b, "run": {}, "documents": []})
    assert manifest_hash(a) != manifest_hash({**a, "outputs": {}})


def test_documents_come_from_the_inputs(tmp_path: Path) -> None:
    corpus = Artifact(tmp_path / "corpus", "collect", {}, {})
    with corpus:
        corpus.documents = [{"path": "a.md", "sha256": "1"}]
    make(tmp_path / "out", corpus=tmp_path / "corpus")
    assert read_manifest(tmp_path / "out")["documents"] == [{"path": "a.md", "sha256": "1"}]


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "out")
    manifest = read_json(tmp_path / "out" / "manifest.json")
    write_json(tmp_path / "out" / "manifest.json", {**manifest, "format": 99})
    with pytest.raises(ArtifactError, match="format 99"):
        read_manifest(tmp_path / "out")


def test_a_folder_without_manifest_is_incomplete(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ArtifactError, match=r"incomplete.*make it with `luthier encode`"):
        read_manifest(tmp_path / "out", "encode")
    with pytest.raises(ArtifactError, match="does not exist"):
        read_manifest(tmp_path / "none")


# ---------------------------------------------------------------- kills


def test_an_error_inside_leaves_the_old_artefact(tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(ZeroDivisionError), Artifact(tmp_path / "out", "encode", {}, {}, overwrite=True) as work:
        (work.folder / "data.txt").write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "out" / "data.txt").read_text() == "one"
    assert read_manifest(tmp_path / "out")["inputs"] == {"corpus": "one"}


def test_an_interrupted_try_of_the_same_work_goes_on_and_of_other_work_starts_anew(tmp_path: Path) -> None:
    def interrupted(value: str) -> Artifact:
        work = Artifact(tmp_path / "out", "encode", {"v": value}, {})
        with pytest.raises(Killed), work:
            (work.folder / f"part-{value}").write_text(value)
            raise Killed
        return work

    assert not interrupted("a").resumed
    assert interrupted("a").resumed
    other = interrupted("b")
    assert not other.resumed
    assert not (other.folder / "part-a").exists()
    with Artifact(tmp_path / "out", "encode", {"v": "b"}, {}) as work:
        assert work.resumed
        assert (work.folder / "part-b").read_text() == "b"
    assert set(read_manifest(tmp_path / "out")["outputs"]) == {"part-b"}


def test_what_an_interrupted_try_has_done_is_not_thrown_away_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def begin(rate: float, shards: str = "a", overwrite: bool = False) -> Artifact:
        settings, inputs = {"rate": rate, "steps": 9}, {"shards": shards}
        work = Artifact(tmp_path / "out", "x", settings, inputs, overwrite=overwrite, progress="step-*")
        with pytest.raises(Killed), work:
            raise Killed
        return work

    begin(0.1)
    done = begin(0.2).folder / "step-1"  # the try before had done nothing
    done.mkdir()
    assert begin(0.2).resumed
    with pytest.raises(ArtifactError, match=r"not finished, as different work: rate was 0.2, is 0.3\n.*--overwrite"):
        begin(0.3)
    with pytest.raises(ArtifactError, match="different work: shards has changed\n"):
        begin(0.2, "b")
    assert begin(0.2).resumed and done.is_dir() and capsys.readouterr().err == ""
    for odd in ("[1]", '"s"', '{"a": 1}'):  # nobody's
        (done.parent / "work.json").write_text(odd)
        assert not begin(0.2).resumed and not done.exists()
        done.mkdir()
    assert not begin(0.3, overwrite=True).resumed and not done.exists()
    assert "rate was 0.2, is 0.3: begun anew" in capsys.readouterr().err


def test_an_input_is_not_replaced_by_what_is_made_of_it(tmp_path: Path) -> None:
    make(out := tmp_path / "out")
    for path in (out, out / "data.txt", tmp_path / "out" / ".." / "out"):
        with pytest.raises(InputError, match=r"out.* is to be read, and --out .*out would replace it"):
            make(out, overwrite=True, corpus=path)
    assert (out / "data.txt").read_text() == "one"
    assert not make(tmp_path / "other", corpus=out).done


@pytest.mark.parametrize("step", [1, 2])
def test_a_kill_at_either_rename_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Before the first rename the old folder is still there; between the two the new one is finished and is put in."""
    out = tmp_path / "out"
    make(out)
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            make(out, "two", overwrite=True)
    assert out.exists() == (step == 1)
    manifest = read_manifest(out)  # what any reader does first
    expected = "one" if step == 1 else "two"
    assert manifest["inputs"] == {"corpus": expected}
    assert (out / "data.txt").read_text() == expected
    assert not (tmp_path / ".out.old").exists()


def test_an_old_folder_comes_back_if_the_new_one_was_not_finished(tmp_path: Path) -> None:
    make(tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / ".out.old")
    (tmp_path / ".out.building").mkdir()
    assert make(tmp_path / "out").done


@pytest.mark.parametrize("step", [None, 1, 2])
def test_a_persons_questions_are_never_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int | None) -> None:
    """Even those written while the new folder was being made, whenever the kill falls."""
    out = tmp_path / "out"
    make(out)
    (out / "questions.jsonl").write_text("first\n")
    with monkeypatch.context() as patch:
        work = Artifact(out, "encode", {}, {}, overwrite=True)
        try:
            with work:
                (work.folder / "data.txt").write_text("two")
                (out / "questions.jsonl").write_text("edited meanwhile\n")
                (out / "questions.manifest.json").write_text("{}")
                if step:
                    kill_at(patch, step)
        except Killed:
            assert step
    read_manifest(out)
    assert (out / "questions.jsonl").read_text() == "edited meanwhile\n"
    assert (out / "questions.manifest.json").read_text() == "{}"
    assert "questions.jsonl" not in read_manifest(out)["outputs"]
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("out", ".out.lock")] in ([], [".out.building"])


def test_caches_come_along_from_the_old_folder_and_from_other_interrupted_work(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def work(value: int) -> Artifact:
        return Artifact(out, "collect", {"v": value}, {}, overwrite=True, caches=("kept",))

    with work(1) as first:
        (first.folder / "kept").mkdir()
        (first.folder / "kept" / "a").write_text("a")
    assert read_manifest(out)["outputs"] == {}
    with pytest.raises(Killed), work(2) as second:
        (second.folder / "kept" / "b").write_text("b")
        raise Killed
    with work(3) as third:
        assert sorted(p.name for p in (third.folder / "kept").iterdir()) == ["a", "b"]
    assert sorted(p.name for p in (out / "kept").iterdir()) == ["a", "b"]


# ---------------------------------------------------------------- one writer


HOLD = """
import sys
from pathlib import Path
from luthier.core.artifacts import Artifact
with Artifact(Path(sys.argv[1]), "encode", {}, {}) as work:
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_writer_is_told_who_holds_the_lock_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=f"process {holder.pid} on"), Artifact(out, "encode", {}, {}):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with Artifact(out, "encode", {}, {}) as work:
        assert work.resumed
    assert read_manifest(out)


def test_a_reader_does_not_disturb_a_writer_between_the_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that finds the old folder moved away must leave the exchange to its living writer."""
    out = tmp_path / "out"
    make(out)
    seen = []

    def rename(self: Path, target: Path) -> Path:
        result = Path.replace(self, target)
        if self == out:  # the moment between the two renames
            code = "import sys, time; from pathlib import Path; from luthier.core import artifacts as a\n"
            code += "a._repair(Path(sys.argv[1])); print(Path(sys.argv[1]).exists())"
            seen.append(subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True))
            time.sleep(0.5)
            assert (tmp_path / ".out.building").is_dir()
        return result

    monkeypatch.setattr(Path, "rename", rename)
    make(out, "two", overwrite=True)
    assert (out / "data.txt").read_text() == "two"
    assert seen[0].communicate()[0] == "True\n"


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match="cannot be written"), Artifact(tmp_path / "file" / "out", "encode", {}, {}):
        pass


def test_manifest_is_plain_json(tmp_path: Path) -> None:
    make(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text(encoding="utf-8"))["format"] == artifacts.FORMAT


def test_a_line_that_is_not_utf8_is_named_and_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": 2}\n')
    assert list(read_jsonl(file)) == [{"a": 1}, {"a": 2}]
    file.write_bytes(b'{"a": 1}\n{"a": "\xff"}\n')
    with pytest.raises(InputError, match=r"rows.jsonl:2: not UTF-8 at byte 7"):
        list(read_jsonl(file))
