"""The command line: every verb explains itself at once, errors are short, exit codes are those promised."""

import errno
import os
import subprocess
import sys

import pytest

from luthier.core.errors import InputError
from luthier.scripts.cli import VERBS, main, run

ALL_VERBS = [verb for group in VERBS.values() for verb in group]
ISSUED = (
    "new run collect questions train-tokenizer train-vectors encode pretrain finetune evaluate index chat write serve "
    "show bench demo replay verify export"
)


def test_all_verbs_are_there():
    assert sorted(ALL_VERBS) == sorted(ISSUED.split())


@pytest.mark.parametrize("verb", ALL_VERBS)
def test_help_explains_and_imports_nothing_heavy(verb):
    """Help answers at once because no verb's help imports torch, numba, transformers or the OCR engine."""
    code = (
        "import sys\nfrom luthier.scripts.cli import main\n"
        f"try:\n    main([{verb!r}, '--help'])\nexcept SystemExit as e:\n    assert not e.code, e.code\n"
        "heavy = {'torch', 'numba', 'onnxruntime', 'rapidocr', 'scipy', 'matplotlib', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for part in ("Goes in:", "Comes out:", "Example: luthier " + verb, "Takes"):
        assert part in done.stdout, part


def test_overview_and_version(capsys):
    assert main([]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {verb}" in overview for verb in ALL_VERBS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("luthier ")


def test_wrong_verb_and_wrong_flag_are_usage_errors(capsys):
    assert main(["colect"]) == 2
    assert "did you mean 'collect'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        main(["new", "x", "--bas", "y"])
    assert stop.value.code == 2


def test_errors_for_the_user_are_short_and_defects_keep_their_trace(capsys):
    def bad_input(argv):
        raise InputError("file.txt:3: not UTF-8")

    def defect(argv):
        raise ValueError("a bug")

    assert run(bad_input, []) == 1
    assert capsys.readouterr().err == "luthier: file.txt:3: not UTF-8\n"
    with pytest.raises(InputError):
        run(bad_input, ["--debug"])
    with pytest.raises(ValueError, match="a bug"):
        run(defect, [])


def test_a_refusal_of_the_operating_system_is_one_line(capsys, tmp_path):
    assert run(lambda _: (tmp_path / "gone.txt").open().close(), []) == 1
    assert capsys.readouterr().err == f"luthier: {tmp_path / 'gone.txt'}: No such file or directory\n"


def test_a_full_disk_says_which_file_and_what_to_do(capsys, tmp_path):
    """Whoever wrote: our own files, and safetensors, whose errors are of a class of its own."""
    from safetensors import SafetensorError

    from luthier.core.artifacts import atomic_open

    def ours(_):
        with atomic_open(tmp_path / "facts.json"):
            raise OSError(errno.ENOSPC, "No space left on device")

    def theirs(_):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    for full, where in ((ours, f"{tmp_path / 'facts.json'}: No space left on device\n"), (theirs, "No space left")):
        assert run(full, []) == 1
        said = capsys.readouterr().err
        assert where in said and said.endswith("\nMake room on the disk and start the same command again.\n")


@pytest.mark.parametrize("arguments", [["--help"], ["show", "--help"], ["show", "."]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_pipe_ends_quietly(arguments, unbuffered, tmp_path):
    (tmp_path / "luthier.toml").write_text("[project]\n")
    reading, writing = os.pipe()
    os.close(reading)
    code = "import sys\nfrom luthier.scripts.cli import main\nsys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with os.fdopen(writing, "w") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (1, "")


def test_interrupt_while_a_verb_is_imported_is_code_130(monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("luthier.scripts.cli.import_module", interrupted)
    assert main(["show", "."]) == 130


def test_interrupt_is_code_130():
    def interrupted(argv):
        raise KeyboardInterrupt

    assert run(interrupted, []) == 130
