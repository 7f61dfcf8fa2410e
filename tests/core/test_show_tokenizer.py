"""A tokenizer for human eyes: tokens in colours, a word's merges as the book takes them, a corpus' report added up."""

from __future__ import annotations

import io
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from luthier.core.errors import InputError
from luthier.core.show.merge_tree import Node, draw_tree, grow
from luthier.core.show.show import show
from luthier.core.show.tokenizer import show_tokenizer
from luthier.core.show.tokenizer_report import measure
from luthier.scripts.cli import main
from luthier.tokenizers.bpe import Tokenizer, encode_by_the_book
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import save_tokenizer
from luthier.tokenizers.vocab_merges import save_vocab_merges

ENGLISH = "The soundboard of a guitar is made of spruce, and the bridge of maple. It is light and strong. " * 30
GERMAN = "Die Decke einer Gitarre ist aus Fichte, und der Steg ist aus Ahorn. Sie ist leicht und doch fest. " * 30


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([ENGLISH], 400, pattern="gpt2")


@pytest.fixture(scope="module")
def folder(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(tokenizer, folder)
    return folder


def shown(path: Path, *, terminal: bool = False, **wishes) -> str:
    console = Console(
        file=io.StringIO(), force_terminal=terminal, color_system="standard" if terminal else None, width=120
    )
    show_tokenizer(path, console=console, **wishes)
    return console.file.getvalue()  # type: ignore[attr-defined]


# ---------------------------------------------------------------- a text


def test_a_text_in_tokens(folder: Path, tokenizer: Tokenizer):
    text = "The soundboard, 東 [x]"
    out = shown(folder, text=text)
    assert "│".join(["The", " soundboard", ","]) in out
    assert "<e6>" in out and "[│x│]" in out
    size, count = len(text.encode()), tokenizer.count(text)
    assert f"{count} tokens, {size} bytes, {size / count:.2f} bytes a token" in out


def test_neighbouring_tokens_have_other_colours(folder: Path):
    out = shown(folder, text="The soundboard", terminal=True)
    assert "\x1b[30;46mThe\x1b[0m\x1b[30;43m soundboard\x1b[0m" in out


def test_without_a_text_there_is_a_sample(folder: Path):
    assert "a sample (give your own with --text)" in shown(folder)
    assert "special tokens  4: <|endoftext|> 0" in shown(folder)


# ---------------------------------------------------------------- a word


@settings(max_examples=100)
@given(piece=st.text("soundbarfge ß", min_size=1, max_size=20))
def test_the_steps_are_those_of_the_book(tokenizer: Tokenizer, piece: str):
    data = piece.encode()
    steps = grow(tokenizer, data)
    byte_ids = [tokenizer.ids_of_bytes.get(bytes([b]), -1) for b in range(256)]
    assert [node.id for node in steps[-1].nodes] == encode_by_the_book(data, tokenizer.ranks, byte_ids)
    for before, after in pairwise(steps):
        assert len(after.nodes) == len(before.nodes) - 1
        left, right = after.nodes[after.place].parts
        assert (left, right) == before.nodes[after.place : after.place + 2]
        assert tokenizer.ranks[left.id, right.id] == (after.nodes[after.place].rank, after.nodes[after.place].id)


def test_a_tree_by_hand():
    """aaabdaaabac, Wikipedia's example: aa → Z, ab → Y, Z Y → X."""
    tokens = [*(bytes([b]) for b in range(256)), b"aa", b"ab", b"aaab"]
    tokenizer = Tokenizer(tokens, [(97, 97), (97, 98), (256, 257)], pattern="gpt2")
    steps = grow(tokenizer, b"aaabd")
    assert [len(step.nodes) for step in steps] == [5, 4, 3, 2]
    a, b = Node(97), Node(98)
    tree = Node(258, 2, (Node(256, 0, (a, a)), Node(257, 1, (a, b))))
    assert steps[-1].nodes == (tree, Node(100))
    assert list(draw_tree(tokenizer, tree)) == [
        "aaab   id 258, merge 2",
        "├─ aa   id 256, merge 0",
        "│  ├─ a",
        "│  └─ a",
        "└─ ab   id 257, merge 1",
        "   ├─ a",
        "   └─ b",
    ]


def test_a_word_is_drawn(folder: Path):
    out = shown(folder, word=" soundboard!")
    assert "␣soundboard: 10 merges make 1 of 11 bytes" in out
    assert "!: 0 merges make 1 of 1 bytes" in out
    assert "s · o · u · n · d · b · o · a · r · d" in out
    assert "your text" not in out


def test_a_piece_taken_whole_is_said_to_be(tmp_path: Path):
    tokens = [*(bytes([b]) for b in range(256)), b"abc"]
    save_tokenizer(Tokenizer(tokens, [], pattern="gpt2", whole_pieces=True), tmp_path)
    assert "the piece is a token itself, id 256, and is taken whole" in shown(tmp_path, word="abc")


# ---------------------------------------------------------------- a report


def test_a_report_adds_up(tokenizer: Tokenizer):
    texts = [("en", ENGLISH), ("de", GERMAN), ("blob", "a" * 3000 + " b")]
    report = measure(tokenizer, texts)
    ids = [tokenizer.encode_ordinary(text) for _, text in texts]
    assert report.whole.tokens == sum(map(len, ids)) == report.counts.sum()
    assert dict(enumerate(report.counts)) == {
        i: Counter(int(x) for part in ids for x in part)[i] for i in range(tokenizer.vocab_size)
    }
    assert [(d.name, d.tokens, d.bytes) for d in report.documents] == [
        (name, len(part), len(text.encode())) for (name, text), part in zip(texts, ids, strict=True)
    ]
    assert report.documents[0].fertility == len(ids[0]) / len(ENGLISH.split())
    languages = {language.name: language for language in report.languages}
    assert languages["en"].bytes == len(ENGLISH.encode())
    assert languages["de"].fertility > 2 * languages["en"].fertility
    assert sum(language.bytes for language in report.languages) == report.whole.bytes
    assert report.capped == [(3000, "a" * 40, "blob")]


def test_with_many_sections_some_are_asked(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("luthier.core.show.tokenizer_report.MOST_SECTIONS", 4)
    report = measure(tokenizer, [("a", (ENGLISH + "\n") * 9)])
    assert report.all_sections == 9 and report.sections == 3


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text(ENGLISH[: 200 + 50 * number])
    (tmp_path / "z.txt").write_text(GERMAN)
    assert main(["show", str(folder), "--report", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    for part in (
        "21 documents",
        "by language:",
        "by document, the dearest first:",
        "… 9 documents between",
        "unused ids: ",
    ):
        assert part in out
    assert "longest tokens that occur:" in out and "␣soundboard" in out
    assert "no piece is longer than 1,024 bytes" in out
    (tmp_path / "a.jsonl").write_text(json.dumps({"n": 1, "body": ENGLISH}) + "\n")
    arguments = ["show", str(folder), "--report", str(tmp_path / "a.jsonl")]
    assert main([*arguments, "--column", "body"]) == 0
    assert "1 document, 0.00 MB" in capsys.readouterr().out
    assert main(arguments) == 1
    assert capsys.readouterr().err.endswith("Name the one that holds the text: --column body\n")
    assert main(["show", str(folder), "--report", str(tmp_path / "nothing")]) == 1
    assert "no such file or folder" in capsys.readouterr().err


def test_other_formats_and_what_has_no_merges(tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    save_vocab_merges(tokenizer, tmp_path)
    show(tmp_path, text="The soundboard")
    assert "The│ soundboard" in capsys.readouterr().out
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="nothing that luthier made"):
        show(tmp_path / "other", word="x")
