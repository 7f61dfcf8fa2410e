"""Pairs by rule on text where the right pair is known, and the promises made to the person who edits them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from luthier.core.artifacts import Artifact, read_jsonl, write_jsonl
from luthier.core.data.clean import assemble
from luthier.core.data.corpus import Document, Source
from luthier.core.data.pairs import pairs_of
from luthier.core.data.passages import Pair, made
from luthier.core.data.phrasings import SHAPES, reword
from luthier.core.data.questions import (
    RULE_NAMES,
    Question,
    QuestionsConfig,
    is_edited,
    make_questions,
    read_questions,
    wording,
)
from luthier.core.data.readers.read import Block
from luthier.core.data.sentences import Rarity, decapitalise, facts_of, is_sentence, sentence_spans
from luthier.core.errors import ArtifactError, ConfigError, InputError

NO_RARITY = Rarity({}, 1)


def document(text: str, path: str = "care.md", title: str = "Care guide", **fields: str) -> Document:
    """A document from a few marks: `# heading`, `| table`, `- list`, else paragraphs, parted by empty lines."""
    blocks = []
    for part in text.strip().split("\n\n"):
        if match := re.match(r"(#+) (.*)", part):
            blocks.append(Block(match[2], "heading", 0, len(match[1])))
        else:
            blocks.append(Block(part, {"|": "table", "-": "list"}.get(part[0], "paragraph")))
    joined, spans = assemble(blocks)
    source = Source(path, "0" * 64, fields.pop("media_type", "text/markdown"))
    values = {"language": "en", "title": title, **fields}
    return Document(path, joined, source, spans, **values)  # type: ignore[arg-type]


def pairs(text: str, rule: str, **fields: str) -> list[Pair]:
    return pairs_of(document(text, **fields), [rule], rarity=NO_RARITY, max_words=40, max_per_table=12)


def asked(text: str, rule: str, **fields: str) -> dict[str, str]:
    return {p.wordings.question: p.answer for p in pairs(text, rule, **fields)}


# ---------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("One. Two! Three? Four", 4),
        ("See e.g. Fig. 3 and Dr. Berg, i.e. the boss. Next.", 2),
        ("Wir öffnen am 3. Mai um 9 Uhr. Danach ist z.B. Pause.", 2),
        ("J. S. Bach wrote it. It costs 3.50 EUR. “Really?” she said.", 3),
        ("It ends (as said.) Then more.", 2),
        ("- one item\n- two items\nof one line", 2),
        ("Version 2.1 is out. 5 people came.", 2),
        ("", 0),
    ],
)
def test_sentence_spans(text: str, count: int) -> None:
    spans = sentence_spans(text)
    assert len(spans) == count, [text[a:b] for a, b in spans]
    assert "".join("".join(text[a:b].split()) for a, b in spans) == "".join(text.split())


@pytest.mark.parametrize(
    ("answer", "question", "facts"),
    [
        ("Keep the room at 45 to 55% humidity.", "What humidity?", ["45", "55%"]),
        ("It costs $1,200.50 or 90 EUR a year.", "What does it cost?", ["$1,200.50", "90 EUR"]),
        ("Write to repairs@fretwork.example.", "Whom?", ["repairs@fretwork.example"]),
        ("Open from 9:30 to 17:00.", "When?", ["9:30", "17:00"]),
        ("The EC2 team met in New York City today.", "Where?", ["EC2", "New York City"]),
        ("Ask Anna Berg about it.", "Who is Anna Berg?", ["about"]),
        ("Wipe the strings with a microfibre cloth.", "How do I clean strings?", ["microfibre"]),
    ],
)
def test_facts(answer: str, question: str, facts: list[str]) -> None:
    found = facts_of(answer, question, NO_RARITY)
    if facts != ["about"]:
        assert found == facts
    assert all(f in answer and f.casefold() not in question.casefold() for f in found)


def test_names_all_over_the_corpus_are_no_facts() -> None:
    rarity = Rarity({"gsa": 90, "berg": 2}, 100)
    assert facts_of("Write to Berg at GSA now.", "Whom?", rarity) == ["Berg"]


@pytest.mark.parametrize(
    ("text", "language", "result"),
    [
        ("Price", "en", "price"),
        ("GSA region", "en", "GSA region"),
        ("Preis", "de", "Preis"),
        ("New York", "en", "New York"),
    ],
)
def test_decapitalise(text: str, language: str, result: str) -> None:
    assert decapitalise(text, language) == result


# ---------------------------------------------------------------- rules


def test_faq_from_headings_lines_and_letters() -> None:
    text = """
# Questions

## How often should I change my strings?

Change them every three months. Players who sweat change monthly.

## Do you buy old instruments?

- Guitars before 1970
- Violins with papers

## Connect the humidifier?

Never do it alone.

## How does it work?

A sponge gives off water over 14 days.

Can I pay by card in the workshop?

We take cards from 20 EUR on.

Q: When is the workshop closed?

A: The workshop is closed on Mondays.
"""
    found = asked(text, "faq")
    assert found == {
        "How often should I change my strings?": "Change them every three months. Players who sweat change monthly.",
        "Do you buy old instruments?": "Guitars before 1970; Violins with papers.",
        "Questions: How does it work?": "A sponge gives off water over 14 days.",
        "Can I pay by card in the workshop?": "We take cards from 20 EUR on.",
        "When is the workshop closed?": "The workshop is closed on Mondays.",
    }


def test_glossary_lines_and_tables() -> None:
    text = """
# Glossary of the workshop

- Relief: the slight forward bow of a neck
- Fret: a strip of metal across the fingerboard.
- Nut: A slotted piece of bone that holds the strings apart. It wears.
- Date: whatever stands in a form
- MDF: medium-density fibreboard, made of fine wood

| Term | Meaning |
| --- | --- |
| Purfling | a thin inlay along the edge |
| Luthier | a maker of stringed instruments |
"""
    found = asked(text, "glossary") | asked(text, "table")
    assert found == {
        "What is relief?": "Relief is the slight forward bow of a neck.",
        "What is a fret?": "A fret is a strip of metal across the fingerboard.",
        "What is a nut?": "A nut is a slotted piece of bone that holds the strings apart. It wears.",
        "What does MDF mean?": "MDF: medium-density fibreboard, made of fine wood.",
        "What is a purfling?": "A purfling is a thin inlay along the edge.",
        "What is a luthier?": "A luthier is a maker of stringed instruments.",
    }


def test_a_list_outside_a_glossary_asks_by_the_documents_name_and_single_colons_ask_nothing() -> None:
    text = (
        "# Rules\n\n- Open windows: Keep them shut in winter.\n- Dust: Wipe it off with a dry cloth.\n\nNote: one note."
    )
    assert asked(text, "glossary") == {
        'What does "Care guide" say about "Open windows"?': "Open windows: Keep them shut in winter.",
        'What does "Care guide" say about "Dust"?': "Dust: Wipe it off with a dry cloth.",
    }


@pytest.mark.parametrize(
    ("sentence", "question"),
    [
        ("A truss rod is a steel rod inside the neck of a guitar.", "What is a truss rod?"),
        ("Purfling is a narrow decorative inlay at the edge of a body.", "What is Purfling?"),
        ("Frets are the metal strips that divide the fingerboard evenly.", "What are frets?"),
        ("Action means the height of the strings over the frets.", 'What does "Action" mean?'),
        ("The Fretwork Fund is a pool of money for young makers.", "What is the Fretwork Fund?"),
        ("“French polish” is a finish of many thin coats of shellac.", "What is French polish?"),
    ],
)
def test_definitions(sentence: str, question: str) -> None:
    assert asked(sentence, "definition") == {question: sentence}


@pytest.mark.parametrize(
    "sentence",
    [
        "This is a rod of steel that runs inside the neck.",
        "The first step is a careful look at the whole neck.",
        "A good look is an important part of every repair.",
        "Using glue is a good way to break an instrument.",
        "If you wait, a crack is a thing that grows.",
        "What you hear is the sound of wood and steel.",
        "The result is a guitar that plays well again.",
        "Care means you do less harm to the thing.",
        "A truss rod is a steel rod (inside the neck of a guitar.",
        "A truss rod is a rod as shown in the table below.",
    ],
)
def test_what_is_no_definition(sentence: str) -> None:
    assert asked(sentence, "definition") == {}


def test_tables_ask_row_by_column() -> None:
    text = """
| Service | Price (EUR) | Opening hours | Contact | Notes |
| --- | --- | --- | --- | --- |
| Fret level | 120 | Mon to Fri, 9 to 18 | Anna Berg | none |
| Setup | 60 | n/a | \\#repairs | see above |
| Total | 180 | x | y | z |
"""
    found = {p.wordings.question: (p.answer, p.facts) for p in pairs(text, "table")}
    assert found == {
        "What is the price for Fret level?": ("The price for Fret level is 120 EUR.", ("120",)),
        "What is the price for Setup?": ("The price for Setup is 60 EUR.", ("60",)),
        "What are the opening hours for Fret level?": (
            "For Fret level, the opening hours are: Mon to Fri, 9 to 18.",
            ("Mon to Fri, 9 to 18",),
        ),
        "Who is the contact for Fret level?": ("The contact for Fret level is Anna Berg.", ("Anna Berg",)),
        "Who is the contact for Setup?": ("The contact for Setup is #repairs.", ("#repairs",)),
    }
    source = document(text)
    for pair in pairs(text, "table"):
        assert source.text[pair.start : pair.end].startswith(f"| {pair.wordings.question.split(' for ')[1][:-1]} |")


def test_tables_without_names_are_passed_over_and_long_ones_are_thinned() -> None:
    numbers = "| 1 | 2 |\n| --- | --- |\n| 3 | 4 |\n| 5 | 6 |"
    twice = "| Part | Price |\n| --- | --- |\n| nut | 5 |\n| nut | 6 |"
    assert asked(numbers, "table") == asked(twice, "table") == {}
    rows = "\n".join(f"| part{chr(97 + n)} | {n} | {n + 1} |" for n in range(20))
    many = pairs(f"| Part | Price | Weight |\n| --- | --- | --- |\n{rows}", "table")
    assert len(many) == 12
    assert {"price", "weight"} <= {p.wordings.question.split()[3] for p in many}


def test_headings_ask_what_the_section_begins_with() -> None:
    text = """
# Care guide

This care guide tells how to keep an instrument well.

The care guide is read by 40 owners.

## Humidity

Keep the humidity between 45 and 55 percent. More is bad.

## Cleaning

It is done with a cloth.

## Transport

Loosen strings by 2 turns.

## Notes

Some 12 notes.

## Sun

A window is warm.
"""
    assert asked(text, "heading") == {
        'What does "Care guide" say about "Humidity"?': "Keep the humidity between 45 and 55 percent. More is bad.",
        'What does "Care guide" say about "Transport"?': "Loosen strings by 2 turns.",
    }


def test_german() -> None:
    text = """
# Pflege

## Wie oft soll ich die Saiten wechseln?

Wechseln Sie die Saiten alle drei Monate.

Ein Steg ist ein Holzteil, das die Saiten trägt und ihre Schwingung weitergibt.

Unter Mensur versteht man die Länge der schwingenden Saite in Millimetern.

## Luftfeuchte

Halten Sie die Luftfeuchte zwischen 45 und 55 Prozent.

## Glossar

- Bund: ein Metallstreifen auf dem Griffbrett
- Decke: die vordere Platte des Korpus

| Leistung | Preis | Ansprechpartner |
| --- | --- | --- |
| Einstellen | 60 EUR | Anna Berg |
| Bundieren | 240 EUR | Ben Kohl |
"""
    fields = {"language": "de", "title": "Pflegeanleitung"}
    rules = ("faq", "definition", "heading", "glossary", "table")
    found = {q: a for rule in rules for q, a in asked(text, rule, **fields).items()}
    assert found == {
        "Wie oft soll ich die Saiten wechseln?": "Wechseln Sie die Saiten alle drei Monate.",
        "Was ist ein Steg?": "Ein Steg ist ein Holzteil, das die Saiten trägt und ihre Schwingung weitergibt.",
        "Was bedeutet „Mensur“?": "Unter Mensur versteht man die Länge der schwingenden Saite in Millimetern.",
        "Was steht in „Pflegeanleitung“ zu „Luftfeuchte“?": "Halten Sie die Luftfeuchte zwischen 45 und 55 Prozent.",
        "Was bedeutet „Bund“?": "Bund: ein Metallstreifen auf dem Griffbrett.",
        "Was bedeutet „Decke“?": "Decke: die vordere Platte des Korpus.",
        "Was kostet Einstellen?": "Preis für Einstellen: 60 EUR.",
        "Was kostet Bundieren?": "Preis für Bundieren: 240 EUR.",
        "Wer steht bei Einstellen unter Ansprechpartner?": "Ansprechpartner für Einstellen: Anna Berg.",
        "Wer steht bei Bundieren unter Ansprechpartner?": "Ansprechpartner für Bundieren: Ben Kohl.",
    }


def test_answers_are_whole_sentences_at_their_span_and_never_cut() -> None:
    long = "Keep the humidity " + "very " * 50 + "steady at 50 percent."
    assert asked(f"# A\n\n## Humidity\n\n{long}", "heading") == {}
    text = "# A\n\n## Humidity\n\nKeep humidity at 50 percent. " + long
    source = document(text)
    (pair,) = pairs(text, "heading")
    assert pair.answer == "Keep humidity at 50 percent." == source.text[pair.start : pair.end]


def test_an_unknown_language_asks_only_what_the_text_asks() -> None:
    text = "## Quelle est la taille du manche?\n\nLe manche mesure 65 cm.\n\n## Bois\n\nLe bois a 12 ans."
    assert asked(text, "heading", language="fr") == {}
    assert made  # the templates' gate


@pytest.mark.parametrize("language", SHAPES)
@pytest.mark.parametrize("shape", SHAPES["en"])
def test_every_shape_has_different_wordings_to_train_and_to_hold_out(language: str, shape: str) -> None:
    trained, held_out = SHAPES[language][shape]
    assert len(trained) >= 3
    assert len(held_out) >= 2
    assert len({wording(t) for t in (*trained, *held_out)}) == len(trained) + len(held_out)
    assert SHAPES["en"].keys() == SHAPES["de"].keys()


def test_reword_changes_the_beginning() -> None:
    assert reword("How do I tune it?", "en") == (["How can I tune it?"], ["In what way do I tune it?"])
    assert reword("Wie lange dauert es?", "de") == (["Wie viel Zeit dauert es?"], ["Über welche Zeit dauert es?"])
    assert reword("Quand?", "fr") == ([], [])


# ---------------------------------------------------------------- a corpus


def corpus_of(folder: Path, *documents: Document, headers: dict[str, dict[str, str]] | None = None) -> Path:
    with Artifact(
        folder,
        "collect",
        {},
        {"documents": repr([asdict(d) for d in documents])},
        overwrite=True,
        caches=("extracted",),
    ) as work:
        write_jsonl(work.folder / "documents.jsonl", (d.to_row() for d in documents))
        write_jsonl(work.folder / "rejected.jsonl", [])
        (work.folder / "extracted").mkdir(exist_ok=True)
        for name, metadata in (headers or {}).items():
            (work.folder / "extracted" / f"{name}.json").write_text(json.dumps({"metadata": metadata}))
    return folder


TEXT = """
# Care guide

## How often should I change my strings?

Change the strings every 3 months.

## Humidity

Keep the humidity between 45 and 55 percent.

## Glossary

- Relief: the slight forward bow of a neck
- Fret: a strip of metal across the fingerboard
"""


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return corpus_of(tmp_path / "corpus", document(TEXT))


def rows(corpus: Path) -> list[dict]:
    return list(read_jsonl(corpus / "questions.jsonl"))


def change(corpus: Path, change_row: Callable[[dict], dict | None]) -> None:
    """What an editor does: each row through `change_row`, None deletes it."""
    kept = [new for row in rows(corpus) if (new := change_row(row)) is not None]
    write_jsonl(corpus / "questions.jsonl", kept)


def test_rows_cite_their_document_and_the_file_reads_back(corpus: Path) -> None:
    summary = make_questions(corpus)
    questions = read_questions(corpus)
    assert summary.total == len(questions) == 4
    for q in questions:
        assert q.path == q.document == "care.md"
        assert q.made_by.removeprefix("rule:") in RULE_NAMES
        assert not is_edited(q)
        assert q.facts
        assert 2 <= len(q.phrasings) <= 3
        assert len(q.held_out) == 2
        assert not {wording(h) for h in q.held_out} & {wording(p) for p in (q.question, *q.phrasings)}
    q = next(q for q in questions if q.made_by == "rule:faq")
    assert document(TEXT).text[q.start : q.end] == q.answer == "Change the strings every 3 months."
    assert q.facts == ["3 months"]
    assert rows(corpus)[0].keys() == {f.name for f in Question.__dataclass_fields__.values()}


def test_a_second_run_does_nothing(corpus: Path) -> None:
    first = make_questions(corpus)
    before = (corpus / "questions.jsonl").stat().st_mtime_ns
    second = make_questions(corpus)
    assert (corpus / "questions.jsonl").stat().st_mtime_ns == before
    assert not second.changed
    assert second.total == first.total


def test_an_edit_survives_a_changed_document_and_follows_it(corpus: Path) -> None:
    make_questions(corpus)
    change(corpus, lambda r: {**r, "answer": "Every quarter."} if r["made_by"] == "rule:faq" else r)
    newer = document("Some words before.\n\n" + TEXT.replace("3 months", "4 months"), split="validation")
    newer.id = "other"
    corpus_of(corpus, newer)
    summary = make_questions(corpus)
    (edited,) = [q for q in read_questions(corpus) if is_edited(q)]
    assert edited.answer == "Every quarter."
    assert (edited.document, edited.split) == ("other", "validation")
    assert newer.text[edited.start : edited.end] == "Change the strings every 4 months."
    assert summary.edited == 1
    assert make_questions(corpus).edited == 1


def test_an_edit_survives_even_if_its_document_is_gone(corpus: Path) -> None:
    make_questions(corpus)
    change(corpus, lambda r: {**r, "question": "When new strings?"} if r["made_by"] == "rule:faq" else r)
    corpus_of(corpus, document("# Other\n\n## Tea\n\nThe tea is served at 16:00.", path="tea.md"))
    make_questions(corpus)
    assert {q.question for q in read_questions(corpus)} == {
        "When new strings?",
        'What does "Care guide" say about "Tea"?',
    }


def test_an_edited_wording_is_not_asked_twice(corpus: Path) -> None:
    """The row keeps its id when its question is edited, so the rule's own question does not come back beside it."""
    make_questions(corpus)
    change(corpus, lambda r: {**r, "question": "New strings when?"} if r["made_by"] == "rule:faq" else r)
    assert make_questions(corpus).total == 4
    assert make_questions(corpus, QuestionsConfig(max_answer_words=39)).total == 4


def test_a_deleted_row_stays_deleted(corpus: Path) -> None:
    make_questions(corpus)
    change(corpus, lambda r: None if r["made_by"] == "rule:faq" else r)
    for text in (TEXT, "Words before.\n\n" + TEXT, TEXT):
        corpus_of(corpus, document(text))
        summary = make_questions(corpus)
        assert summary.deleted == 1
        assert "rule:faq" not in summary.made_by
        assert summary.total == 3


def test_a_row_that_its_rule_no_longer_makes_goes_and_may_come_back(corpus: Path) -> None:
    make_questions(corpus)
    corpus_of(corpus, document(TEXT.replace("3 months.", "so often?")))
    assert "rule:faq" not in make_questions(corpus).made_by
    corpus_of(corpus, document(TEXT))
    assert make_questions(corpus).made_by["rule:faq"] == 1


def test_a_persons_own_rows_stay_as_they_are(corpus: Path) -> None:
    make_questions(corpus)
    mine = {"question": "Who sweeps?", "answer": "Nobody."}
    write_jsonl(corpus / "questions.jsonl", [mine, *rows(corpus)])
    summary = make_questions(corpus)
    assert summary.total == 5
    assert summary.made_by["person"] == 1
    first = read_questions(corpus)[0]
    assert (first.question, first.answer, first.made_by, first.made) == ("Who sweeps?", "Nobody.", "person", "")
    corpus_of(corpus, document("# Other\n\n## Tea\n\nThe tea is served at 16:00.", path="tea.md"))
    make_questions(corpus)
    assert read_questions(corpus)[0].question == "Who sweeps?"


def test_own_files_join_win_and_follow_their_file(corpus: Path, tmp_path: Path) -> None:
    own = tmp_path / "pairs.jsonl"
    pair = {"question": "What is relief?", "answer": "A bow.", "phrasings": ["Relief?"], "facts": ["bow"]}
    write_jsonl(own, [pair, {"question": "Wer fegt die Werkstatt am Abend?", "answer": "Niemand fegt die Werkstatt."}])
    summary = make_questions(corpus, own=[own])
    by_question = {q.question: q for q in read_questions(corpus)}
    assert summary.total == 5
    assert (by_question["What is relief?"].answer, by_question["What is relief?"].made_by) == ("A bow.", "person")
    assert by_question["Wer fegt die Werkstatt am Abend?"].language == "de"
    write_jsonl(own, [{**pair, "answer": "A forward bow."}])
    assert make_questions(corpus, own=[own]).total == 4
    assert {q.question: q.answer for q in read_questions(corpus)}["What is relief?"] == "A forward bow."
    assert make_questions(corpus).total == 4  # without the file the rule answers again
    assert {q.question: q.made_by for q in read_questions(corpus)}["What is relief?"] == "rule:glossary"


def test_a_kill_between_the_two_files_deletes_nothing(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.core.data import questions

    make_questions(corpus)
    before = rows(corpus)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    corpus_of(corpus, document(TEXT + "\n## Storage\n\nStorage needs 2 hooks on a wall."))
    with monkeypatch.context() as patch:
        patch.setattr(questions, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            make_questions(corpus)
    assert make_questions(corpus).deleted == 0
    assert {r["id"] for r in before} < {r["id"] for r in rows(corpus)}


def test_a_removed_file_starts_anew(corpus: Path) -> None:
    make_questions(corpus)
    (corpus / "questions.jsonl").unlink()
    summary = make_questions(corpus)
    assert (summary.total, summary.deleted) == (4, 0)


def test_held_out_wordings_are_trained_nowhere(tmp_path: Path) -> None:
    other = document(TEXT.replace("Care guide", "Second guide"), path="b.md", title="Second guide")
    corpus = corpus_of(tmp_path / "corpus", document(TEXT), other)
    make_questions(corpus)
    mine = {"question": 'What do you understand by "fret"?', "answer": "Metal."}
    write_jsonl(corpus / "questions.jsonl", [*rows(corpus), mine])
    make_questions(corpus)
    questions = read_questions(corpus)
    trained = [wording(w) for q in questions for w in (q.question, *q.phrasings)]
    assert len(trained) == len(set(trained))
    assert not set(trained) & {wording(h) for q in questions for h in q.held_out}
    assert sum(map(is_edited, questions)) == 0


def test_a_question_with_two_answers_is_not_asked(tmp_path: Path) -> None:
    text = "# Prices\n\n| Service | Price |\n| --- | --- |\n| Setup | {} |\n| Oiling | 20 |"
    corpus = corpus_of(tmp_path / "c", document(text.format(60), path="a.md"), document(text.format(70), path="b.md"))
    make_questions(corpus)
    assert [q.question for q in read_questions(corpus)] == ["What is the price for Oiling?"]


def test_the_most_of_a_document_is_shared_by_the_rules(tmp_path: Path) -> None:
    table = "| Part | Price |\n| --- | --- |\n" + "\n".join(f"| part{chr(97 + n)} | {n} EUR |" for n in range(20))
    corpus = corpus_of(tmp_path / "c", document(TEXT + "\n" + table))
    counts = make_questions(corpus, QuestionsConfig(max_per_document=6)).made_by
    assert counts == {"rule:faq": 1, "rule:glossary": 2, "rule:heading": 1, "rule:table": 2}


def test_volatile_and_validation_follow_the_document(tmp_path: Path) -> None:
    volatile = document("# News\n\n## Hours\n\nHours are 9 to 17.", path="n.md", title="News", kind="volatile")
    held = document("# Old\n\n## Wood\n\nThe wood has 12 years.", path="o.md", title="Old", split="validation")
    corpus = corpus_of(tmp_path / "c", volatile, held)
    summary = make_questions(corpus)
    assert {(q.path, q.kind, q.split) for q in read_questions(corpus)} == {
        ("n.md", "volatile", "train"),
        ("o.md", "stable", "validation"),
    }
    assert summary.kinds == {"volatile": 1, "stable": 1}
    assert summary.splits == {"validation": 1}


# ---------------------------------------------------------------- mails


def mail(text: str, path: str, title: str) -> Document:
    return document(text, path=path, title=title, media_type="message/rfc822")


QUESTION = (
    "Hello,\n\nI bought a guitar from you last year. How long is the warranty on the neck? It seems fine.\n\nBest\nAnna"
)
REPLY = (
    "Dear Anna,\n\nThe warranty on the neck is five years. Please bring the papers.\n\nKind regards\nBen\n\n> How long?"
)


@pytest.mark.parametrize(
    ("headers", "subjects"),
    [
        (
            {"a.eml": {"message_id": "<1@x>"}, "b.eml": {"message_id": "<2@x>", "in_reply_to": "<1@x>"}},
            ("Neck", "Other"),
        ),
        ({}, ("Warranty", "Re: AW: Warranty")),
    ],
)
def test_a_mail_and_its_reply(tmp_path: Path, headers: dict[str, dict[str, str]], subjects: tuple[str, str]) -> None:
    reply = mail(REPLY, "b.eml", subjects[1])
    corpus = corpus_of(tmp_path / "c", mail(QUESTION, "a.eml", subjects[0]), reply, headers=headers)
    make_questions(corpus, QuestionsConfig(rules=("mail",)))
    (q,) = read_questions(corpus)
    assert q.question == "How long is the warranty on the neck?"
    assert q.answer == "The warranty on the neck is five years. Please bring the papers."
    assert (q.path, reply.text[q.start : q.end]) == ("b.eml", q.answer)


def test_a_mail_that_quotes_the_question(tmp_path: Path) -> None:
    text = "The workshop opens at 9:30 on Saturdays.\n\n> When does the workshop open on Saturdays?"
    corpus = corpus_of(tmp_path / "c", mail(text, "a.eml", "Opening"), mail("No reply here.", "b.eml", "Re: None"))
    make_questions(corpus, QuestionsConfig(rules=("mail",)))
    (q,) = read_questions(corpus)
    assert (q.question, q.answer) == (
        "When does the workshop open on Saturdays?",
        "The workshop opens at 9:30 on Saturdays.",
    )


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "Q?"}, "field 'answer' is missing"),
        ({"question": " ", "answer": "A"}, "field 'question' is missing or empty"),
        ({"question": "Q?", "answer": "A", "phrasings": "one"}, "field 'phrasings' is 'one': expected a list"),
        ({"question": "Q?", "answer": "A", "facts": [1]}, "field 'facts'"),
        ({"question": "Q?", "answer": "A", "kind": "volatil"}, "expected stable or volatile"),
        ({"question": "Q?", "answer": "A", "start": "0"}, "field 'start'"),
        ({"question": "Q?", "answer": "A", "phrasing": []}, "no field 'phrasing'; did you mean 'phrasings'"),
        ({"question": "Q?", "answer": "A", "id": 3}, "field 'id'"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(tmp_path: Path, row: dict, message: str) -> None:
    file = tmp_path / "pairs.jsonl"
    write_jsonl(file, [{"question": "Fine?", "answer": "Yes."}])
    file.write_text(file.read_text() + "\n" + json.dumps(row) + "\n")
    with pytest.raises(InputError, match=rf"pairs\.jsonl:3: .*{re.escape(message)}"):
        read_questions(file)


def test_other_bad_input(tmp_path: Path, corpus: Path) -> None:
    with pytest.raises(InputError, match=r"questions\.jsonl does not exist; make it with `luthier questions"):
        read_questions(corpus)
    with pytest.raises(InputError, match=r"none\.jsonl does not exist"):
        make_questions(corpus, own=[tmp_path / "none.jsonl"])
    with pytest.raises(ArtifactError, match="does not exist"):
        make_questions(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="no rule 'tables'; did you mean 'table'"):
        QuestionsConfig(rules=("tables",))
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"question": "Größe?", "answer": "A"}\n'.encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.jsonl: not UTF-8 at byte 16"):
        read_questions(latin)
    twice = tmp_path / "twice.jsonl"
    write_jsonl(twice, [{"question": "Same?", "answer": "A"}, {"question": "same", "answer": "B"}])
    with pytest.raises(InputError, match=r"twice\.jsonl:2: field 'id': the same as in line 1"):
        read_questions(twice)


def test_is_sentence() -> None:
    assert is_sentence("Keep it dry.")
    assert not is_sentence("keep it dry.")
    assert not is_sentence("Keep it dry")
    assert not is_sentence("Bring these:")


# ---------------------------------------------------------------- a real handbook


@pytest.fixture(scope="module")
def handbook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of the public handbook in $LUTHIER_TEST_DATA, pages that real people wrote for real people."""
    import os

    from luthier.core.data.collect import collect

    data = os.environ.get("LUTHIER_TEST_DATA")
    if not data:
        pytest.skip("LUTHIER_TEST_DATA is not set")
    corpus = tmp_path_factory.mktemp("handbook") / "corpus"
    collect([Path(data) / "docs" / "handbook"], corpus)
    make_questions(corpus)
    return corpus


def test_pairs_of_a_real_handbook_keep_every_promise(handbook: Path) -> None:
    from luthier.core.data.corpus import read_corpus

    documents = {d.id: d for d in read_corpus(handbook)}
    questions = read_questions(handbook)
    assert len(questions) > 300
    assert {q.made_by for q in questions} >= {f"rule:{r}" for r in RULE_NAMES if r != "mail"}
    for q in questions:
        document = documents[q.document]
        assert (q.path, q.kind, q.split) == (document.source.path, document.kind, document.split)
        assert 1 <= len(q.answer.split()) <= 40
        assert q.answer[-1] in '.!…"”’)»“'
        assert q.facts
        assert not re.search(r"\]\(|\{%|\n", q.question + q.answer)
        cited = " ".join(document.text[q.start : q.end].split())
        if q.made_by in ("rule:definition", "rule:heading"):
            assert q.answer == cited
        if q.made_by == "rule:table":
            assert all(f in re.sub(r"[\\<>*_`]", "", cited) or f in cited for f in q.facts)
        assert all(f in q.answer for f in q.facts)
    trained = [wording(w) for q in questions for w in (q.question, *q.phrasings)]
    assert len(trained) == len(set(trained))
    assert not set(trained) & {wording(h) for q in questions for h in q.held_out}
    assert {q.split for q in questions} == {"train", "validation"}


def test_a_handbook_makes_the_same_pairs_twice(handbook: Path) -> None:
    before = (handbook / "questions.jsonl").read_bytes()
    (handbook / "questions.jsonl").unlink()
    make_questions(handbook)
    assert (handbook / "questions.jsonl").read_bytes() == before
