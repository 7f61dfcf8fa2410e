"""Anything of the process is recognised by its manifest, its name or its first line; anything else is said to be so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.core.artifacts import Artifact, write_json, write_jsonl
from luthier.core.assistant.index import build_index
from luthier.core.data.corpus import Document, Source, Span
from luthier.core.errors import InputError, LuthierError
from luthier.core.show import show as shown
from luthier.core.show.curve import curve
from luthier.core.show.show import show

TEXT = "The soundboard is spruce. The bridge is maple."


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    document = Document("1", TEXT, Source("wood.md", "", "text/markdown"), [Span(0, len(TEXT), 0, "paragraph")])
    with Artifact(tmp_path / "corpus", "collect", {}, {}) as work:
        write_jsonl(work.folder / "documents.jsonl", [document.to_row()])
        write_jsonl(work.folder / "rejected.jsonl", [])
    return tmp_path / "corpus"


def artifact(folder: Path, stage: str) -> Path:
    with Artifact(folder, stage, {}, {}) as work:
        write_json(work.folder / "x.json", {})
    return folder


@pytest.mark.parametrize("stage", list(shown.STAGES))
def test_an_artefact_goes_to_the_view_of_its_stage(
    tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Path] = []
    monkeypatch.setitem(shown.STAGES, stage, lambda path, _: seen.append(path))
    folder = artifact(tmp_path / "a", stage)
    show(folder)
    show(folder / "manifest.json")
    assert seen == [folder, folder]
    assert "made by: " in capsys.readouterr().out


def test_every_stage_of_a_project_has_a_view() -> None:
    assert set(shown.STAGES) == {
        "collect", "train-tokenizer", "encode", "train-vectors", "pretrain", "finetune", "index", "evaluate",
        "evaluate-vectors", "export",
    }  # fmt: skip


def test_a_corpus_and_its_files(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (corpus, corpus / "documents.jsonl", corpus / "rejected.jsonl"):
        show(path)
        assert "a corpus of 1 document, 8 words" in capsys.readouterr().out


def test_an_index_and_what_it_finds(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build_index(corpus, tmp_path / "index")
    show(tmp_path / "index")
    out = capsys.readouterr().out
    assert "an index of 2 chunks of 1 document\n" in out and "form: sentence 2" in out
    assert "found by: wood" in out and "words are compared by stem" in out and "made by: " in out
    show(tmp_path / "index", text="What is the bridge made of?")
    assert "wood.md, characters 26 to 46\n        The bridge is maple." in capsys.readouterr().out
    show(tmp_path / "index", text="???")
    assert "nothing: the question has no word to look for" in capsys.readouterr().out


def test_json_lines_are_known_by_their_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "any.jsonl"
    write_jsonl(file, [{"question": "Why?", "answer": "Because.", "facts": []}])
    show(file)
    assert "1 pair of question and answer" in capsys.readouterr().out
    write_jsonl(file, [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}])
    show(file)
    assert "1 conversation." in (out := capsys.readouterr().out) and "⟦Hello⟧" in out
    write_jsonl(file, [{"step": n, "loss": 4 - n / 10} for n in range(1, 31)])
    show(file)
    assert "at the first step 3.900, at the last step 1.000, least 1.000" in (out := capsys.readouterr().out)
    assert f"{'':8}step 1{'step 30':>24}\n" in out
    write_jsonl(file, [{"question": "Why?", "set": "volatile", "x": 1}, {}])
    show(file)
    assert "2 lines of JSON with the keys question, set, x" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("steps", "axis"),
    [(1, "step 1"), (8, "steps 1 to 8"), (12, "steps 1 to 12"), (13, "steps 1 to 13"), (14, "step 1 step 14")],
)
def test_a_short_curve_names_its_ends_apart(
    tmp_path: Path, steps: int, axis: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": n, "loss": 4 - n / 10} for n in range(1, steps + 1)])
    show(tmp_path / "metrics.jsonl")
    assert capsys.readouterr().out.splitlines()[-1] == " " * 8 + axis


def test_two_runs_and_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A setting that one run has not and the other does not know is none of either."""
    for name, loss, settings in (
        ("a", 5.536, {"batch_size": 8, "base": None, "vectors": None, "seed": 0}),
        ("b", 4.25, {"batch_size": 4, "vectors": "v", "seed": 0}),
    ):
        with Artifact(tmp_path / name, "pretrain", settings, {}) as work:
            write_jsonl(work.folder / "metrics.jsonl", [{"step": n, "loss": loss} for n in range(1, 1201)])
    show(tmp_path / "a", others=[tmp_path / "b"])
    out = capsys.readouterr().out
    assert "loss 5.536 at the last step (1,200)\n" in out and "loss 4.250 at the last step (1,200)\n" in out
    assert "   batch_size: a 8, b 4\n   vectors: a None, b v\n" in out
    assert "base:" not in out and "seed" not in out


def test_a_project_says_what_is_built(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "firm" / "build").mkdir(parents=True)
    corpus.rename(tmp_path / "firm" / "build" / "corpus")
    (tmp_path / "firm" / "luthier.toml").write_text('[project]\nname = "The Firm"\n')
    for path in (tmp_path / "firm", tmp_path / "firm" / "luthier.toml"):
        show(path)
        out = capsys.readouterr().out
        assert "the project The Firm" in out
        assert any(line.startswith("corpus") and line.endswith("bytes") for line in out.splitlines())
        assert any(line.startswith("tuned") and line.endswith("not built") for line in out.splitlines())
        assert "vectors-glove" not in out  # the project does not ask for them


def test_a_tokenizer_and_a_model_without_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As other programs write them: recognised by their files alone; a tuned model shows loss and example too."""
    from luthier.models.checkpoints import save_model
    from luthier.models.config import ModelConfig
    from luthier.models.transformer import Transformer
    from luthier.tokenizers.bpe_train import train_bpe
    from luthier.tokenizers.formats import save_tokenizer

    tokenizer = train_bpe([TEXT], 280, min_frequency=1)
    save_tokenizer(tokenizer, tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        show(path, text=TEXT)
        assert "280" in capsys.readouterr().out
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    save_model(Transformer(config), tmp_path)
    write_jsonl(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}])
    write_jsonl(tmp_path / "trained_pairs.jsonl", [{"question": "Top?", "answer": "Spruce.", "path": "wood.md"}])
    show(tmp_path)
    out = capsys.readouterr().out
    assert "at the first step 5.000, at the last step 4.000" in out
    assert "A training example (wood.md)" in out and "⟦Spruce.<|im_end|>⟧" in out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("scan.pdf", b"%PDF-1.7", "a file of 8 bytes, and nothing that luthier made"),
        ("folder/a.txt", b"x", "a folder of 1 file, and nothing that luthier made"),
        ("app/manifest.json", b'{"name": "a web page"}', "nothing that luthier made"),
        ("half/work.json", b"{}", "an artefact in the making"),
    ],
)
def test_what_is_nothing_of_ours(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        show(file if file.parent == tmp_path else file.parent)
    assert len(str(error.value).splitlines()) <= 3


def test_a_name_of_the_hub_and_a_slip_of_the_pen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is named, not asked: every try to reach it fails the test."""
    (tmp_path / "here" / "build" / "tokenizer").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    hub = "\nA model on the hub is downloaded and shown by: luthier show hub:"
    for path, end in {
        "owner/name": f"{hub}owner/name",
        "build/tokeniser": "; did you mean 'tokenizer'?",
        "biuld": "; did you mean 'build'?",
        "owner": "",
        "a/b/c": "",
        "/owner/name": "",
        "../owner": "",
    }.items():
        with pytest.raises(InputError) as error:
            show(Path(path))
        assert str(error.value) == f"{path}: no such file or folder{end}"


def test_odd_files_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.JSONL").write_text('{"text": "x"}\n')
    show(tmp_path / "a.JSONL")
    assert "a.JSONL: 1 line of JSON with the keys text\n" in capsys.readouterr().out
    (tmp_path / "b.jsonl").write_text("{}\n{}\n")
    show(tmp_path / "b.jsonl")
    assert "b.jsonl: 2 lines of JSON with no keys\n" in capsys.readouterr().out
    (tmp_path / "questions.jsonl").write_text("")
    show(tmp_path / "questions.jsonl")
    assert "0 pairs of question and answer" in capsys.readouterr().out
    (tmp_path / "link.txt").symlink_to("nowhere.txt")
    (tmp_path / "c.jsonl").write_text("\n")
    (tmp_path / "d.txt").write_text("x")
    for name, message in {
        "link.txt": "no such file or folder; it is a link to nowhere.txt, which is not there",
        "c.jsonl": "c.jsonl is empty: it has no line of JSON",
        "d.txt": "d.txt is a file of 1 byte, and nothing that luthier made\nText is read by train-tokenizer",
    }.items():
        with pytest.raises(InputError) as error:
            show(tmp_path / name)
        assert message in str(error.value)


def test_missing_broken_and_newer_things(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file or folder$"):
        show(tmp_path / "nowhere")
    (tmp_path / "x.jsonl").write_text("{\n")
    with pytest.raises(InputError, match=r"x\.jsonl:1: not valid JSON"):
        show(tmp_path / "x.jsonl")
    folder = artifact(tmp_path / "future", "dream")
    with pytest.raises(InputError, match="`luthier dream`"):
        show(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(LuthierError, match="format 99"):
        show(folder)


@given(st.lists(st.floats(-99, 99), min_size=1, max_size=300), st.integers(1, 80), st.integers(1, 20))
def test_a_curve_has_its_size_and_its_ends(values: list[float], width: int, height: int) -> None:
    lines = curve(values, width, height)
    assert len(lines) == height
    assert all(len(line) <= 16 + min(width, len(values)) for line in lines)
    assert " " not in lines[-1][8:]  # every column stands on the ground


def test_a_falling_loss_falls() -> None:
    top, *_, bottom = curve([5.0, 4.0, 3.0, 2.0, 1.0], height=5)
    assert top.startswith("   5.00 █") and not top.endswith("▁")
    assert bottom.startswith("   1.00 ████▁")


def test_a_checkpoint_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "step-00000010").mkdir()
    for name in ("state.json", "model.safetensors"):
        (tmp_path / "step-00000010" / name).write_text("{}")
    with pytest.raises(InputError, match=r"is a checkpoint of a run\nMake .* luthier export .*step-00000010"):
        show(tmp_path / "step-00000010")
