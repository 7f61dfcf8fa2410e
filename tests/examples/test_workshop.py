"""The sample company holds together: every fact asked about stands in the document it is said to stand in, nothing
answers the unanswerable questions, the made files say what their sources say, and collecting gives what is meant."""

from __future__ import annotations

import csv
import email
import email.policy
import json
import re
import zipfile
from collections import Counter
from html import unescape
from io import BytesIO
from pathlib import Path

import pytest

from luthier.core.data.collect import CollectConfig, collect, matches
from luthier.core.data.corpus import Document, read_corpus
from luthier.core.data.dedup import jaccard, shingles
from luthier.core.data.dedup import normalise as words_of
from luthier.core.data.questions import RULE_NAMES, Question, make_questions, read_questions
from luthier.core.evaluation.evaluate import EvaluationQuestion, read_evaluation
from luthier.core.evaluation.metrics import has_facts, normalise
from luthier.examples import sample_company
from luthier.examples.make_documents import MADE, OLDER, SOURCES, docx, older_web_page, pdf, web_page

WORKSHOP = sample_company()
DOCUMENTS = WORKSHOP / "documents"
FORMATS = {".pdf", ".jpg", ".docx", ".html", ".eml", ".md", ".csv"}
VOLATILE = ("news", "mail/estimate-*")
HELD_OUT = ("guides/history.md", "guides/bow-guide.md")
# What each unanswerable question is about.
NOWHERE = ("harp", "piano", "trumpet", "flute", "bitcoin", "password", "swimming", "salary", "akkordeon", "satellite")


def text_of(path: str) -> str:
    """A document's text from what it was made of: no reader of ours is needed to know it."""
    if path.endswith(".eml/estimate.pdf"):
        return (SOURCES / "estimate.md").read_text(encoding="utf-8")
    source = SOURCES / MADE[path][0] if path in MADE else DOCUMENTS / path
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".html":
        text = unescape(re.sub(r"<[^>]+>", " ", text))
    return " ".join(text.split())


@pytest.fixture(scope="module")
def pairs() -> list[Question]:
    return read_questions(WORKSHOP / "pairs.jsonl")


@pytest.fixture(scope="module")
def asked() -> list[EvaluationQuestion]:
    return read_evaluation(WORKSHOP / "evaluation.jsonl")


def all_texts() -> dict[str, str]:
    paths = [p.relative_to(DOCUMENTS).as_posix() for p in sorted(DOCUMENTS.rglob("*")) if p.is_file()]
    return {p: text_of(p) for p in paths if not p.startswith("archive/")}


# ---------------------------------------------------------------- what is there


def test_size_and_formats() -> None:
    texts = all_texts()
    assert 100_000 <= sum(map(len, texts.values())) <= 200_000
    assert {Path(p).suffix for p in texts} >= FORMATS
    assert sum(f.stat().st_size for f in WORKSHOP.rglob("*") if f.is_file()) < 2_000_000


def test_every_fact_stands_in_its_document(pairs: list[Question], asked: list[EvaluationQuestion]) -> None:
    rows = [(q.question, q.path, q.answer, tuple(q.facts)) for q in pairs]
    rows += [(q.question, q.about, q.answer, q.facts) for q in asked if q.set != "unanswerable"]
    for question, path, answer, facts in rows:
        text = text_of(path)
        assert facts and has_facts(answer, facts), question
        assert has_facts(text, facts), f"{question}: {path} does not say {facts}"
        if not path.endswith(".csv"):
            assert answer in text, f"{question}: not a sentence of {path}"
        assert not has_facts(question, facts), f"{question} gives its answer away"


def test_sets(pairs: list[Question], asked: list[EvaluationQuestion]) -> None:
    counts = Counter(q.set for q in asked)
    assert len(pairs) >= 40 and counts["paraphrase"] >= 40 and counts["volatile"] >= 12 and counts["unanswerable"] == 10
    assert all(3 <= len(q.phrasings) <= 5 for q in pairs)
    for name in ("paraphrase", "unanswerable"):
        assert {q.language for q in asked if q.set == name} == {"en", "de"}
    assert sum(q.language == "de" for q in pairs) >= 5


def test_evaluation_is_not_trained(pairs: list[Question], asked: list[EvaluationQuestion]) -> None:
    trained = [normalise(w) for q in pairs for w in (q.question, *q.phrasings)]
    assert len(trained) == len(set(trained))
    assert not set(trained) & {normalise(q.question) for q in asked}
    answers = {q.answer for q in pairs}
    assert all(q.answer in answers for q in asked if q.set == "paraphrase")
    for path in (q.path for q in pairs):
        assert not matches(path, (*VOLATILE, *HELD_OUT, "archive"))
    assert all(matches(q.about, VOLATILE) for q in asked if q.set == "volatile")


def test_nothing_answers_the_unanswerable(asked: list[EvaluationQuestion]) -> None:
    questions = [q.question.lower() for q in asked if q.set == "unanswerable"]
    assert all(any(word in question for word in NOWHERE) for question in questions)
    everything = " ".join(all_texts().values()).lower()
    for word in NOWHERE:
        assert not re.search(rf"\b{word}", everything), word


def test_the_templates_columns_and_questions(pairs: list[Question]) -> None:
    template = (WORKSHOP / "notice.txt").read_text(encoding="utf-8")
    with (WORKSHOP / "notice.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and template.startswith("# file: {number}.txt\n")
    assert set(re.findall(r"\{(\w+)\}", template)) == set(rows[0])
    trained = {w for q in pairs for w in (q.question, *q.phrasings)}
    for question in re.findall(r"\{ask: ([^{}]+)\}", template) + [row["care"] for row in rows]:
        assert question in trained


# ---------------------------------------------------------------- what is made


@pytest.mark.parametrize("path", [p for p, (_, make) in MADE.items() if make in (docx, web_page, older_web_page)])
def test_made_files_are_up_to_date(path: str) -> None:
    source, make = MADE[path]
    made, there = make((SOURCES / source).read_text(encoding="utf-8")), (DOCUMENTS / path).read_bytes()
    if make is docx:  # compression may differ from one zlib to another, the content may not
        a, b = (zipfile.ZipFile(BytesIO(data)) for data in (made, there))
        assert a.namelist() == b.namelist() and all(a.read(n) == b.read(n) for n in a.namelist())
    else:
        assert made == there


def squeezed(text: str) -> str:
    """Only the letters, digits and marks: however lines were broken and words hyphenated, this is the same."""
    return re.sub(r"[\s#\-‐\ufffe\x02]+", "", text)


def pdf_text(data: bytes) -> str:
    import pypdfium2

    document = pypdfium2.PdfDocument(data)
    text = "\n".join(document[i].get_textpage().get_text_range() for i in range(len(document)))
    return re.sub(r"(?m)^(Corvane Workshop: |Edition of January 2026).*$", "", text)


@pytest.mark.parametrize("path", [p for p, (_, make) in MADE.items() if make is pdf])
def test_pdf_says_what_its_source_says(path: str) -> None:
    data = (DOCUMENTS / path).read_bytes()
    assert squeezed(pdf_text(data)) == squeezed((SOURCES / MADE[path][0]).read_text(encoding="utf-8"))
    assert re.search(r"\w\ufffe\s*\w|\w-\r?\n", pdf_text(data)), "no word is broken at a line's end"


def test_mail_carries_the_estimate() -> None:
    message = email.message_from_bytes(
        (DOCUMENTS / "mail/estimate-sandpiper.eml").read_bytes(), policy=email.policy.default
    )
    (attachment,) = message.iter_attachments()
    assert attachment.get_filename() == "estimate.pdf"
    source = (SOURCES / "estimate.md").read_text(encoding="utf-8")
    assert squeezed(pdf_text(attachment.get_content())) == squeezed(source)
    body = message.get_body(("plain",))
    assert body is not None and "comes to 420 EUR" in body.get_content()


def test_copies_are_copies() -> None:
    rules, export = (DOCUMENTS / p for p in ("handbook/house-rules.md", "archive/house-rules-export.txt"))
    a, b = (p.read_text(encoding="utf-8") for p in (rules, export))
    assert words_of(a) == words_of(b) and len(b) < len(a)  # the longer one is kept, whatever the files' dates say
    new, old = (
        re.sub(r"<[^>]+>", " ", (DOCUMENTS / p).read_text(encoding="utf-8"))
        for p in ("guides/care-guide.html", "archive/care-guide-2019.html")
    )
    assert 0.8 < jaccard(shingles(new), shingles(old)) < 1 and len(old) < len(new)
    assert all(value in unescape(old) and value not in unescape(new) for value in OLDER.values())
    assert (DOCUMENTS / "archive/untitled.docx").stat().st_size == 0


# ---------------------------------------------------------------- what becomes of it


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents collected with the settings of luthier.toml, and the questions made; reading two pictures takes
    most of the time."""
    import tomllib

    table = tomllib.loads((WORKSHOP / "luthier.toml").read_text(encoding="utf-8"))["collect"]
    assert (tuple(table["volatile"]), tuple(table["validation"])) == (VOLATILE, HELD_OUT)
    out = tmp_path_factory.mktemp("workshop") / "corpus"
    collect([DOCUMENTS], out, CollectConfig(VOLATILE, HELD_OUT, table["validation_fraction"]))
    make_questions(out, own=[WORKSHOP / "pairs.jsonl"])
    return out


@pytest.fixture(scope="module")
def documents(corpus: Path) -> dict[str, Document]:
    return {d.source.path: d for d in read_corpus(corpus)}


def test_collected(corpus: Path, documents: dict[str, Document]) -> None:
    rejected = [json.loads(line) for line in (corpus / "rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    whole = {row["source"]["path"]: row["rule"] for row in rejected if not row.get("part")}
    assert whole == {
        "archive/care-guide-2019.html": "near-duplicate",
        "archive/house-rules-export.txt": "exact-duplicate",
        "archive/untitled.docx": "empty",
    }
    assert {row["rule"] for row in rejected if row.get("part")} == {"running-line"}
    assert set(all_texts()) <= set(documents)
    assert [p for p, d in sorted(documents.items()) if d.split == "validation"] == sorted(HELD_OUT)
    assert documents["guides/pflege-streichinstrumente.md"].language == "de"


def test_every_fact_can_be_read(
    documents: dict[str, Document], pairs: list[Question], asked: list[EvaluationQuestion]
) -> None:
    rows = [(q.path, q.facts) for q in pairs] + [(q.about, q.facts) for q in asked if q.set != "unanswerable"]
    for path, facts in rows:
        assert has_facts(documents[path].text, facts), (path, facts)


def test_rules_make_many_pairs(corpus: Path) -> None:
    rows = read_questions(corpus)
    by_rule = Counter(q.made_by for q in rows)
    assert sum(n for rule, n in by_rule.items() if rule != "person") >= 150
    assert set(by_rule) == {"person", *(f"rule:{rule}" for rule in RULE_NAMES)}
    assert sum(q.language == "de" and q.made_by != "person" for q in rows) >= 10
    assert sum(q.split == "validation" for q in rows) >= 15
