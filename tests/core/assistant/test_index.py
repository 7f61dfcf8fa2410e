"""The index finds what is there, with its address, and scores low what is not; what is measured is not in it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from luthier.core.artifacts import Artifact, read_manifest, write_jsonl
from luthier.core.assistant.chunks import document_chunks
from luthier.core.assistant.index import FILE, IndexConfig, build_index, open_index
from luthier.core.assistant.match import idf
from luthier.core.data.corpus import Document, Source, Span
from luthier.core.data.questions import Question
from luthier.core.errors import ArtifactError, ConfigError, InputError
from luthier.core.evaluation.metrics import normalise
from luthier.models.vectors import Vectors
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import load_tokenizer, save_tokenizer, spell

from .conftest import DOCUMENTS, make_corpus, make_document


def best(index: Path, question: str):
    with open_index(index) as opened:
        return opened.search(question)[0]


@pytest.mark.parametrize(
    ("question", "answer", "path"),
    [
        ("What humidity is right?", "Keep the humidity between 45 and 55 percent.", "care.md"),
        ("How much does fret levelling cost?", "Fret levelling – Price: CHF 180, Time: 3 days", "prices.csv"),
        ("What is the price for repairing bridges?", "Repair of a bridge – Price: CHF 90, Time: 2 days", "prices.csv"),
        ("May I use alcohol on French polish?", "Never use alcohol on French polish.", "care.md"),
        ("Wie oft wechselt ihr die Saiten?", "Die Saiten wechseln wir jedes halbe Jahr.", "pflege.md"),
        ("When are you open on Saturday this week?", "Saturday from 9:00 to 12:00", "news/week.md"),
        ("Is Teo Brandl on vacation?", "Teo Brandl is on holiday until Thursday.", "news/week.md"),
        ("Name the boss of it all.", "Ottilie Corvane founded the workshop.", "questions.jsonl"),
    ],
)
def test_the_right_sentence_is_found(index: Path, question: str, answer: str, path: str) -> None:
    hit = best(index, question)
    assert (hit.chunk.text, hit.chunk.path) == (answer, path)
    assert hit.score > 0.45


@pytest.mark.parametrize(
    "question",
    ["Do you repair harps?", "What is the wireless password?", "Who is the mayor?", "Verkaufen Sie Trompeten?"],
)
def test_what_nothing_answers_scores_low(index: Path, question: str) -> None:
    with open_index(index) as opened:
        assert all(hit.score < 0.45 for hit in opened.search(question))


def test_every_span_is_where_the_text_stands(index: Path) -> None:
    texts = {path: make_document(path).text for path in DOCUMENTS}
    with open_index(index) as opened:
        chunks = [c for c in opened.chunks() if c.form != "pair"]
        assert len(opened) == len(chunks) + 1
    for chunk in chunks:
        words = [w for w in normalise(chunk.text).split() if w not in ("price", "time", "–")]
        assert set(words) <= set(normalise(texts[chunk.path][chunk.start : chunk.end]).split())
    pages = {c.text: c.page for c in chunks if c.path == "handbook.pdf"}
    assert sorted(pages.values()) == [1, 2]
    assert {c.kind for c in chunks if c.path == "news/week.md"} == {"volatile"}


def test_a_leaning_sentence_brings_the_one_before_it() -> None:
    texts = [c.text for c in document_chunks(make_document("care.md"))]
    assert "Keep the humidity between 45 and 55 percent. It falls in winter." in texts
    assert "Dry air cracks spruce." in texts


def test_a_long_stretch_without_full_stops_is_cut_at_line_breaks() -> None:
    text = "\n".join(f"Shelf {n} holds spruce and maple boards of the year {1900 + n}" for n in range(20))
    document = Document("x", text, Source("x.txt", "", ""), [Span(0, len(text), 0, "paragraph")])
    chunks = list(document_chunks(document))
    assert len(chunks) > 2 and all(len(c.text.split()) <= 60 for c in chunks)
    assert " ".join(c.text for c in chunks) == " ".join(text.split())


def test_only_what_is_trained_is_a_known_answer(index: Path) -> None:
    with open_index(index) as opened:
        pairs = [c for c in opened.chunks() if c.form == "pair"]
    assert [c.text for c in pairs] == ["Ottilie Corvane founded the workshop."]
    assert pairs[0].keys == ("Who started the firm?", "Name the boss of it all.")
    assert b"enterprise" not in (index / FILE).read_bytes()  # a held-out wording, in no table of the file
    assert b"kazoo" not in (index / FILE).read_bytes()


def test_an_edited_answer_changes_the_index_and_an_equal_one_does_not(
    tmp_path: Path, corpus: Path, index: Path, questions: list[Question]
) -> None:
    stamp = (index / FILE).stat().st_mtime_ns
    build_index(corpus, index)
    assert (index / FILE).stat().st_mtime_ns == stamp
    questions[0].answer = "Hanne Liddell started the firm."
    write_jsonl(corpus / "questions.jsonl", (q.to_row() for q in questions))
    with pytest.raises(ArtifactError, match="--overwrite"):
        build_index(corpus, index)
    build_index(corpus, index, overwrite=True)
    assert best(index, "Who started the firm?").chunk.text == "Hanne Liddell started the firm."


def test_manifest_names_documents_and_counts_are_reported(tmp_path: Path, corpus: Path) -> None:
    summary = build_index(corpus, tmp_path / "out", IndexConfig(pairs=False))
    assert [d["path"] for d in read_manifest(tmp_path / "out", "index")["documents"]] == list(DOCUMENTS)
    assert summary.documents == len(DOCUMENTS) and "known answers" not in summary.forms
    assert summary.forms["table rows"] == 3 and summary.kinds["volatile"] == 4
    assert summary.size == (tmp_path / "out" / FILE).stat().st_size and "table rows" in str(summary)


def test_a_persons_pair_is_no_document(
    tmp_path: Path, corpus: Path, questions: list[Question], capsys: pytest.CaptureFixture[str]
) -> None:
    from luthier.core.show.index import show_index

    of_a_document = Question("9", "What splits?", "Dry air cracks spruce.", path="care.md", start=1, end=2)
    write_jsonl(corpus / "questions.jsonl", (q.to_row() for q in (*questions, of_a_document)))
    summary = build_index(corpus, tmp_path / "out")
    assert (summary.documents, summary.own, summary.forms["known answers"]) == (len(DOCUMENTS), 1, 2)
    rows = [line.rsplit(maxsplit=1) for line in str(summary).splitlines()]
    assert rows[0] == ["documents", str(len(DOCUMENTS))] and ["  of them your own pairs", "1"] in rows
    show_index(tmp_path / "out")
    assert f" chunks of {len(DOCUMENTS)} documents and 1 pair of your own\n" in capsys.readouterr().out


def test_the_vocabulary_counts_sentences_as_a_loop_does(index: Path) -> None:
    """FTS5's counts, which the idf rests on, against counting by hand."""
    with open_index(index) as opened:
        rows = (
            sqlite3.connect(index / FILE).execute("SELECT text_stems, context_stems, key_stems FROM chunks").fetchall()
        )
        for word in ("fret", "humid", "price", "nowhere"):
            by_hand = sum(word in " ".join(row).split() for row in rows)
            assert opened._count(word) == by_hand
        assert idf(opened._count("nowhere"), len(opened)) > idf(opened._count("humid"), len(opened))


def test_a_question_of_signs_finds_nothing_and_breaks_nothing(index: Path) -> None:
    with open_index(index) as opened:
        for question in (
            "",
            "???",
            'NEAR("x" OR',
            "a AND b NOT *",
            "what is it",
            "'; DROP TABLE chunks; --",
            "\x00 fret",
        ):
            assert isinstance(opened.search(question), list)
        assert opened.search("???") == []


def test_vectors_of_words_find_other_words_exactly(tmp_path: Path, corpus: Path) -> None:
    """With vectors in which `moisture` is `humidity`, the cosine finds what no word does; all cosines are exact."""
    from luthier.models.vectors import Vectors

    rng = np.random.default_rng(0)
    with open_index(_built(corpus, tmp_path / "plain")) as plain:
        words = sorted({w for c in plain.chunks() for w in c.text.lower().replace(".", "").split()})
    table = rng.normal(size=(len(words) + 1, 256)).astype(np.float32)
    table[-1] = table[words.index("humidity")]
    tokens = [*words, "moisture"]
    (tmp_path / "vectors").mkdir()
    Vectors(table, tokens, np.arange(len(tokens)), np.ones(len(tokens), np.int64)).save(tmp_path / "vectors")
    build_index(corpus, tmp_path / "index", IndexConfig(similarity=0.5), vectors=tmp_path / "vectors")
    with open_index(tmp_path / "index") as opened:
        hits = opened.search("moisture", most=50)
        rows = np.concatenate(list(opened._blocks("sentences")))
        assert opened.about["dimensions"] == 256 and len(rows) == len(opened)
        assert "humidity" in hits[0].chunk.text
        asked = opened._meaning.encode("moisture")  # type: ignore[union-attr]
        texts = [c.text for c in opened.chunks()]
        for hit in hits:
            assert hit.cosine == pytest.approx(float(rows[texts.index(hit.chunk.text)] @ asked), abs=1e-6)
            assert 0 <= hit.score <= 1
    norms = np.linalg.norm(rows, axis=1)
    assert np.allclose(norms[norms > 0], 1, atol=1e-5)


def _built(corpus: Path, out: Path) -> Path:
    build_index(corpus, out)
    return out


def test_what_is_no_index_or_of_another_format_is_refused(tmp_path: Path, corpus: Path, index: Path) -> None:
    with pytest.raises(ArtifactError, match="expected the output of `luthier index`"):
        open_index(corpus)
    with pytest.raises(ArtifactError, match="does not exist"):
        open_index(tmp_path / "nowhere")
    with pytest.raises(ArtifactError, match="luthier collect"):
        build_index(index, tmp_path / "x")
    damaged = shutil.copytree(index, tmp_path / "damaged")
    for whole in (0, 5000):
        (damaged / FILE).write_bytes((index / FILE).read_bytes()[:whole])
        with pytest.raises(ArtifactError, match="damaged or cut short"):
            open_index(damaged)
    manifest = json.loads((index / "manifest.json").read_text())
    manifest["settings"]["format"] = 99
    (index / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="format 99"):
        open_index(index)
    with pytest.raises(ConfigError, match="similarity"):
        IndexConfig(similarity=2)


def test_vectors_of_tokens_need_the_tokenizer_that_they_belong_to(tmp_path: Path, corpus: Path) -> None:
    text = "the humidity between Keep strings visitors " * 20
    for name, size in (("own", 300), ("other", 262)):
        save_tokenizer(train_bpe([text], size), tmp_path / name)
    own = load_tokenizer(tmp_path / "own")
    ids = np.arange(4, own.vocab_size)
    table = np.random.default_rng(0).standard_normal((len(ids), 6)).astype(np.float32)
    (tmp_path / "vectors").mkdir()
    vectors = Vectors(table, [spell(own.tokens[i]) for i in ids], ids, np.ones(len(ids), np.int64), None, "byte-level")
    vectors.save(tmp_path / "vectors")
    for tokenizer, message in ((None, "Give --tokenizer"), (tmp_path / "other", "another tokenizer than")):
        with pytest.raises(InputError, match=message):
            build_index(corpus, tmp_path / "index", vectors=tmp_path / "vectors", tokenizer=tokenizer)
    assert not (tmp_path / "index").exists()
    build_index(corpus, tmp_path / "index", vectors=tmp_path / "vectors", tokenizer=tmp_path / "own")


@pytest.mark.skipif(not os.environ.get("LUTHIER_TEST_DATA"), reason="LUTHIER_TEST_DATA is not set")
@pytest.mark.parametrize(("language", "right", "false"), [("en", 0.6, 0.08), ("de", 0.5, 0.06)])
def test_on_xquad_half_of_the_articles_answer_and_half_cannot(
    tmp_path: Path, language: str, right: float, false: float
) -> None:
    """XQuAD's questions (Artetxe et al. 2020): every other article is indexed. How often does the quoted sentence hold
    the answer, and how often is something quoted for a question on an article that is not there?"""
    from luthier.core.artifacts import Artifact

    file = Path(os.environ["LUTHIER_TEST_DATA"]) / "qa" / f"xquad.{language}.json"
    articles = json.loads(file.read_text(encoding="utf-8"))["data"]
    documents, asked = [], {0: [], 1: []}
    for n, article in enumerate(articles):
        text, spans = "", []
        for paragraph in article["paragraphs"]:
            start = len(text) + 2 if text else 0
            text = f"{text}\n\n{paragraph['context']}" if text else paragraph["context"]
            spans.append(Span(start, len(text), 0, "paragraph"))
            asked[n % 2] += [(q["question"], q["answers"][0]["text"]) for q in paragraph["qas"][::3]]
        if n % 2 == 0:
            title = article["title"].replace("_", " ")
            documents.append(Document(str(n), text, Source(f"{n}.txt", "", ""), spans, language=language, title=title))
    with Artifact(tmp_path / "corpus", "collect", {}, {}) as work:
        write_jsonl(work.folder / "documents.jsonl", (d.to_row() for d in documents))
    build_index(tmp_path / "corpus", tmp_path / "index")
    with open_index(tmp_path / "index") as opened:
        hits = [(h, a) for q, a in asked[0] for h in opened.search(q, 1)]
        others = [opened.search(q, 1) for q, _ in asked[1]]
    good = sum(h.score >= 0.45 and normalise(a) in normalise(h.chunk.text) for h, a in hits)
    wrong = sum(bool(found) and found[0].score >= 0.45 for found in others)
    assert good / len(asked[0]) > right
    assert wrong / len(others) < false


def test_of_two_that_cover_alike_the_one_that_was_asked_for_comes_first(tmp_path: Path) -> None:
    """A known question word for word, and the first sentence under the heading that was named."""
    answers = {"What is action?": "The height of the strings.", "What is the action on a ukulele?": "It is 2.5 mm."}
    rows = [Question(str(n), question, answer) for n, (question, answer) in enumerate(reversed(answers.items()))]
    build_index(make_corpus(tmp_path / "corpus", rows), tmp_path / "index")
    assert best(tmp_path / "index", "What is action?").chunk.text == "The height of the strings."
    assert best(tmp_path / "index", "What about cleaning?").chunk.text == "Wipe the strings after playing."


def test_a_persons_answer_that_stands_in_its_document_has_its_page(tmp_path: Path) -> None:
    answer = "The founder of the workshop is Ottilie Corvane."
    rows = [
        Question("1", "Whose firm?", answer, path="handbook.pdf"),
        Question("2", "Why?", "So.", path="handbook.pdf"),
    ]
    build_index(make_corpus(tmp_path / "corpus", rows), tmp_path / "index")
    found = best(tmp_path / "index", "Whose firm?").chunk
    assert (found.form, found.page) == ("pair", 2)
    assert make_document("handbook.pdf").text[found.start : found.end] == answer


def test_of_two_rows_the_one_that_is_about_nothing_else_is_meant(tmp_path: Path) -> None:
    """Both have all words of the question, their heading speaks of it as much, and the other one stands first."""
    rows = [("Bow", "Weight", "Length", "Width of hair"), ("a baroque violin bow", "50 g", "69.0 cm", "7 mm")]
    rows += [("a violin bow", "60 g", "74.5 cm", "10 mm"), ("a cello bow", "80 g", "71.5 cm", "12 mm")]
    title, table = "The weight of a bow", "\n".join(f"| {' | '.join(row)} |" for row in rows)
    spans = [Span(0, len(title), 1, "heading"), Span(len(title) + 2, len(title) + 2 + len(table), 1, "table")]
    document = Document("bows.md", f"{title}\n\n{table}", Source("bows.md", "0" * 64, "text/markdown"), spans)
    with Artifact(tmp_path / "corpus", "collect", {}, {}, documents=[{"path": "bows.md", "sha256": "0" * 64}]) as work:
        write_jsonl(work.folder / "documents.jsonl", [document.to_row()])
        write_jsonl(work.folder / "rejected.jsonl", [])
    build_index(tmp_path / "corpus", tmp_path / "index")
    for name, weight, *_ in rows[1:]:
        assert weight in best(tmp_path / "index", f"What is the weight of {name}?").chunk.text
