"""Encode: every text is in the shards whole and in its split, traceable, and ends where it ends and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.core.artifacts import Artifact, read_jsonl, read_manifest, write_jsonl
from luthier.core.data.corpus import Document, Source
from luthier.core.data.encode import SECTION, EncodeConfig, encode, placed, sections, tokenizer_hash
from luthier.core.data.shards import open_shards
from luthier.core.data.texts import Text
from luthier.core.errors import ArtifactError, ConfigError, InputError
from luthier.core.show.shards import coloured, show_shards, visible
from luthier.tokenizers.bpe import Tokenizer
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import load_tokenizer, save_tokenizer

DOCUMENTS = [
    Document("a", "The soundboard is spruce.\n\nGrüße, 李!", Source("care/a.md", "1" * 64, "text/markdown")),
    Document(
        "b", "The neck is maple.<|endoftext|>Not the end.", Source("b.txt", "2" * 64, "text/plain"), split="validation"
    ),
    Document("c", "The bridge is rosewood." * 40, Source("c.txt", "3" * 64, "text/plain")),
    Document("n", "Closed on Friday.", Source("news/n.txt", "4" * 64, "text/plain"), kind="volatile"),
]


def make_corpus(folder: Path, documents: list[Document]) -> Path:
    with Artifact(folder, "collect", {}, {"documents": str(documents)}, overwrite=True) as work:
        write_jsonl(work.folder / "documents.jsonl", (d.to_row() for d in documents))
        write_jsonl(work.folder / "rejected.jsonl", ())
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_bpe([d.text for d in DOCUMENTS], 300), folder)
    return folder


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "corpus", DOCUMENTS)


# ---------------------------------------------------------------- what is in the shards


def test_every_stable_document_is_there_whole_and_in_its_split(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    summary = encode([corpus], tokenizer, tmp_path / "shards")
    known = load_tokenizer(tokenizer)
    for split, lines in (("train", [0, 2]), ("validation", [1])):
        shards = open_shards(tmp_path / "shards", split)  # type: ignore[arg-type]
        assert shards.documents.tolist() == lines
        assert shards.names == [DOCUMENTS[i].source.path for i in lines]
        for i, line in enumerate(lines):
            ids = shards.document(i)
            assert known.decode(ids[:-1]) == DOCUMENTS[line].text
            assert (ids == known.eos_id).tolist() == [False] * (len(ids) - 1) + [True]
        size = sum(len(DOCUMENTS[i].text.encode()) for i in lines)
        counts = {"files": 1, "documents": len(lines), "tokens": len(shards.tokens), "bytes": size}
        assert summary.splits[split] == counts
        assert f"{size / len(shards.tokens):.2f}" in str(summary)
        assert (shards.vocab_size, shards.eos_id) == (known.vocab_size, known.eos_id)
        assert shards.tokenizer == tokenizer_hash(tokenizer) == tokenizer_hash(tokenizer / "tokenizer.json")


def test_the_manifest_names_what_went_in(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("More text.")
    encode([corpus, tmp_path / "more.txt"], tokenizer, tmp_path / "shards", EncodeConfig(validation_fraction=0))
    manifest = read_manifest(tmp_path / "shards", "encode")
    assert [d["path"] for d in manifest["documents"]] == ["care/a.md", "b.txt", "c.txt", "more.txt"]
    assert open_shards(tmp_path / "shards").documents.tolist() == [0, 2, -1]
    assert (tmp_path / "shards" / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
    assert len(list(read_jsonl(tmp_path / "shards" / "sources.jsonl"))) == 4


def test_general_text_is_trained_and_marked(
    corpus: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.core.data import general

    monkeypatch.setattr(general, "MODULES", ["abc", "queue"])
    encode([corpus], tokenizer, tmp_path / "shards", EncodeConfig(general="python", num_threads=1))
    shards = open_shards(tmp_path / "shards")
    assert shards.documents[:2].tolist() == [0, 2]
    assert (shards.documents[2:] == -1).all() and len(shards) > 50
    assert shards.names[2] == "python: abc"
    assert open_shards(tmp_path / "shards", "validation").documents.tolist() == [1]


def test_threads_and_file_sizes_change_no_token(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    encode([corpus], tokenizer, tmp_path / "one", EncodeConfig(num_threads=1))
    encode([corpus], tokenizer, tmp_path / "two", EncodeConfig(num_threads=2, max_shard_tokens=20))
    one, two = open_shards(tmp_path / "one"), open_shards(tmp_path / "two")
    assert (tmp_path / "two" / "train-00001.bin").exists()
    assert np.array_equal(np.asarray(one.tokens), np.asarray(two.tokens))
    assert np.array_equal(one.offsets, two.offsets)


# ---------------------------------------------------------------- what is held out


def texts(n: int) -> list[Text]:
    return [Text(f"Text {i} of a file.", name=str(i)) for i in range(n)]


def test_a_share_of_files_is_held_out_whatever_else_is_there() -> None:
    whole = {t.name: t.split for t in placed(texts(2000), 0.1)}
    assert 0.08 < sum(s == "validation" for s in whole.values()) / 2000 < 0.12
    some = {t.name: t.split for t in placed(reversed(texts(2000)[::3]), 0.1)}
    assert all(whole[name] == split for name, split in some.items())
    assert {t.split for t in placed(texts(100), 0)} == {"train"}
    few = {t.name: t.split for t in placed(texts(9), 1e-9)}
    assert len(few) == 9 and [*few.values()].count("validation") == 1
    assert few == {t.name: t.split for t in placed(reversed(texts(9)), 1e-9)}
    assert [t.split for t in placed(texts(1), 1e-9)] == ["train"]
    given = Text("a", "validation", 3, "a", "corpus")
    assert {t.split for t in placed([*texts(9), given], 1e-9) if t is not given} == {"train"}
    assert {t.split for t in placed(texts(100), 1)} == {"validation"}


def split_of(placed_texts: Iterable[Text]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for text in placed_texts:
        found.setdefault(text.text, set()).add(text.split)
    return found


@pytest.mark.parametrize("step", [1, -1])
def test_no_copy_of_a_text_held_out_is_trained(step: int) -> None:
    copied = split_of(placed((texts(9) * 3)[::step], 1e-9))
    assert sorted(map(sorted, copied.values())) == [["train"]] * 8 + [["validation"]]
    assert [t.split for t in placed(texts(1) * 3, 1e-9)] == ["train"] * 3  # copies are all there is


@pytest.mark.parametrize("step", [1, -1])
def test_ones_only_file_is_held_out_beside_a_corpus_that_holds_none_out(step: int) -> None:
    own, document = texts(1)[0], Text("a", "train", 0, "a", "corpus")
    assert split_of(placed([own, document][::step], 1e-9)) == {own.text: {"validation"}, "a": {"train"}}
    general = replace(document, line=-1, origin="general")  # one's only text is not held out for it
    assert split_of(placed([own, general][::step], 1e-9)) == {own.text: {"train"}, "a": {"train"}}
    for copy in (replace(document, text=own.text), replace(general, text=own.text)):
        assert split_of(placed([own, copy, document][::step], 1e-9)) == {own.text: {"train"}, "a": {"train"}}


def test_corpus_and_general_texts_stay_where_they_are() -> None:
    fixed = [Text("a", "validation", 3, "a", "corpus"), Text("b" * SECTION * 3, "train", -1, "b", "general")]
    assert list(placed(fixed, 0.5)) == fixed


@settings(max_examples=30)
@given(st.lists(st.integers(1, SECTION * 2), max_size=6), st.sampled_from(["\n\n", "\n", " "]))
def test_sections_joined_are_the_text(lengths: list[int], between: str) -> None:
    text = between.join("x" * n for n in lengths)
    parts = list(sections(text))
    assert "".join(parts) == text
    if between == " ":
        assert len(parts) == bool(text)  # nowhere to cut
    else:
        assert all(len(part) > SECTION and part.endswith("\n") for part in parts[:-1])
        assert all(len(part) <= SECTION + max(lengths) + 2 for part in parts[:-1])
        assert not parts or len(parts[-1]) <= SECTION * 3 // 2 or between not in parts[-1][SECTION:]


def test_a_long_text_is_cut_so_that_a_part_can_be_held_out(tokenizer: Path, tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {i} of a long text about the neck of a guitar." for i in range(20_000)]
    (tmp_path / "long.txt").write_text("\n\n".join(paragraphs))
    encode([tmp_path / "long.txt"], tokenizer, tmp_path / "shards", EncodeConfig(validation_fraction=0.2))
    train, validation = (open_shards(tmp_path / "shards", s) for s in ("train", "validation"))
    assert len(train) + len(validation) > 10 and len(validation)
    known = load_tokenizer(tokenizer)
    cut = [known.decode(s.document(i)[:-1]) for s in (train, validation) for i in range(len(s))]
    found = [paragraph for section in cut for paragraph in section.strip().split("\n\n")]
    assert sorted(found) == sorted(paragraphs)
    lines = "\n\n".join(paragraphs).split("\n")
    names = [(row["split"], row["name"]) for row in read_jsonl(tmp_path / "shards" / "sources.jsonl")]
    for shards, split in ((train, "train"), (validation, "validation")):
        for i, name in enumerate(name for of, name in names if of == split):
            file, _, line = name.rpartition(":")  # by the line that it begins with
            assert file.endswith("long.txt") and known.decode(shards.document(i)).startswith(lines[int(line) - 1])


# ---------------------------------------------------------------- again, and with other work


def test_the_same_work_is_done_once(
    corpus: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = encode([corpus], tokenizer, tmp_path / "shards")
    before = (tmp_path / "shards" / "manifest.json").stat().st_mtime_ns
    assert encode([corpus], tokenizer, tmp_path / "shards", EncodeConfig(num_threads=1)) == first
    assert "is up to date" in capsys.readouterr().err
    make_corpus(
        corpus, [*DOCUMENTS[:3], Document("n2", "Open again.", Source("news/m.txt", "5" * 64, ""), kind="volatile")]
    )
    encode([corpus], tokenizer, tmp_path / "shards")  # news change no shard
    assert (tmp_path / "shards" / "manifest.json").stat().st_mtime_ns == before
    make_corpus(corpus, DOCUMENTS[:2])
    with pytest.raises(ArtifactError, match="different work"):
        encode([corpus], tokenizer, tmp_path / "shards")
    assert encode([corpus], tokenizer, tmp_path / "shards", overwrite=True).splits["train"]["documents"] == 1


def test_another_tokenizer_is_other_work(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    encode([corpus], tokenizer, tmp_path / "shards")
    save_tokenizer(train_bpe(["other text"], 270), tmp_path / "other")
    with pytest.raises(ArtifactError, match="different work"):
        encode([corpus], tmp_path / "other", tmp_path / "shards")


def test_two_tries_make_the_same_files(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    for name in ("x", "y"):
        encode([corpus], tokenizer, tmp_path / name)
    outputs = [read_manifest(tmp_path / name)["outputs"] for name in ("x", "y")]
    assert outputs[0] == outputs[1]


# ---------------------------------------------------------------- what bad input gets


def test_bad_inputs(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    with pytest.raises(InputError, match="nothing does not exist"):
        encode([corpus], tmp_path / "nothing", out)
    with pytest.raises(InputError, match="no such file"):
        encode([tmp_path / "missing.txt"], tokenizer, out)
    with pytest.raises(InputError, match="2 corpora"):
        encode([corpus, make_corpus(tmp_path / "second", DOCUMENTS)], tokenizer, out)
    with pytest.raises(InputError, match="every text is held out"):
        encode([make_corpus(tmp_path / "held", DOCUMENTS[1:2])], tokenizer, out)
    with pytest.raises(InputError, match="no text in"):
        encode([make_corpus(tmp_path / "news", DOCUMENTS[3:])], tokenizer, out)
    (tmp_path / "bad.txt").write_bytes(b"ok \xff")
    with pytest.raises(InputError, match="not UTF-8 at byte 3"):
        encode([tmp_path / "bad.txt"], tokenizer, out)
    assert not out.exists()


def test_the_texts_are_never_replaced(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("All there is.")
    (tmp_path / "link").symlink_to("mine")
    for text in (tmp_path / "mine", tmp_path / "mine" / "a.txt", tmp_path / "link" / "a.txt"):
        for out in (tmp_path / "mine", tmp_path / "link", tmp_path):
            with pytest.raises(InputError, match=r"is to be read, and --out .* would replace it\nGive another"):
                encode([corpus, text], tokenizer, out, overwrite=True)
    assert (tmp_path / "mine" / "a.txt").read_text() == "All there is."
    encode([tmp_path / "mine"], tokenizer, tmp_path / "mine" / "shards", overwrite=True)  # beside it is well
    encode([tmp_path / "mine"], tokenizer, tmp_path / "mine 2", overwrite=True)


@pytest.mark.parametrize("setting", [{"validation_fraction": 1.5}, {"max_shard_tokens": 0}, {"num_threads": -1}])
def test_bad_settings(setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        EncodeConfig(**setting)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the view and the verb


def test_the_view_shows_tokens_and_where_they_come_from(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    from rich.console import Console

    encode([corpus], tokenizer, tmp_path / "shards")
    plain, colour = StringIO(), StringIO()
    show_shards(tmp_path / "shards", Console(file=plain, width=200))
    show_shards(tmp_path / "shards", Console(file=colour, width=200, force_terminal=True, color_system="standard"))
    shown = plain.getvalue()
    assert "train: 2 documents" in shown and "validation: 1 document," in shown
    assert "care/a.md, line 0 of documents.jsonl" in shown
    assert "The soundboard is spruce.↵" in shown.replace("│", "")
    assert "\x1b[30;46m" in colour.getvalue() and "│" not in colour.getvalue()


def test_tokens_are_made_visible() -> None:
    assert [visible(t) for t in (b"a", b"\n", b"\t", "ß".encode()[:1], b"\x07", "李".encode())] == [
        "a", "↵\n", "→", "<c3>", "<07>", "李",
    ]  # fmt: skip
    assert coloured([b"a", b"b"], plain=True).plain == "a│b"
    assert coloured([b"a", b"b"], plain=False).plain == "ab"


def test_the_verb(corpus: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from luthier.scripts.encode import main

    arguments = [str(corpus), "--tokenizer", str(tokenizer), "--out", str(tmp_path / "s"), "--num-threads", "1"]
    assert main(arguments) == 0
    assert "uint16 ids of a vocabulary of 2" in capsys.readouterr().out
    assert json.loads((tmp_path / "s" / "shards.json").read_text())["splits"]["train"]["documents"] == 2


def test_foreign_special_tokens_in_text_end_nothing(tokenizer: Path, tmp_path: Path) -> None:
    known: Tokenizer = load_tokenizer(tokenizer)
    (tmp_path / "a.txt").write_text("".join(known.special_tokens) * 3)
    encode([tmp_path / "a.txt"], tokenizer, tmp_path / "s", EncodeConfig(validation_fraction=0))
    ids = open_shards(tmp_path / "s").document(0)
    assert set(known.special_tokens.values()) & set(ids[:-1].tolist()) == set()
