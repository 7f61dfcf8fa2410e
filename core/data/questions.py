"""Question-and-answer pairs of a corpus: made by rule, then yours to edit.

`questions.jsonl` lies in the corpus folder, one pair a line. It belongs to the person who edits it as much as to the
rules, so a second run merges instead of overwriting:

    row as a rule made it                made anew, or gone if the rule no longer makes it
    row that somebody edited             stays as edited (`made` holds the hash of what the rule had written)
    row that somebody deleted            stays deleted (questions.manifest.json knows every id that was ever offered)
    row without `made_by`                is a person's own and stays
    files given as `own`                 join as made_by "person", and win over a rule that asks the same

Where a row comes from (document, page, span, kind, split) follows the corpus, whoever edited the rest. A wording that
is held out is never among those trained: that is checked over the whole file.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from luthier.core.artifacts import (
    content_hash,
    hash_file,
    locked,
    read_json,
    read_jsonl,
    read_manifest,
    write_json,
    write_jsonl,
)
from luthier.core.console import progress, say
from luthier.core.data.corpus import Document, read_corpus
from luthier.core.errors import ConfigError, InputError, did_you_mean

__all__ = ["Question", "QuestionsConfig", "QuestionsSummary", "make_questions", "read_questions"]

ROWS = "questions.jsonl"
MANIFEST = "questions.manifest.json"
FORMAT = 1
RULE_NAMES = ("faq", "mail", "glossary", "definition", "table", "heading")
# What the corpus knows better than the row: not part of what counts as an edit.
FROM_CORPUS = ("document", "path", "page", "start", "end", "kind", "split")


@dataclass(frozen=True)
class QuestionsConfig:
    """Which pairs are made, and how many."""

    rules: tuple[str, ...] = RULE_NAMES
    """Rules to use, in order of trust: where two ask the same, the first one answers."""
    max_per_document: int = 24
    """Most pairs of one document; the rules share it in turn, so that a long table does not crowd out the rest."""
    max_per_table: int = 12
    """Most pairs of one table, spread over its rows."""
    max_answer_words: int = 40
    """Longest answer in words; a longer sentence is passed over, never cut."""
    phrasings: int = 3
    """Further wordings of each question to train on."""
    held_out: int = 2
    """Wordings of each question that are never trained, for evaluation."""

    def __post_init__(self) -> None:
        for rule in self.rules:
            if rule not in RULE_NAMES:
                raise ConfigError(
                    f"rules: no rule '{rule}'{did_you_mean(rule, RULE_NAMES) or '.'} Known: {', '.join(RULE_NAMES)}"
                )
        for name in ("max_per_document", "max_per_table", "max_answer_words", "phrasings", "held_out"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected 0 or more")


@dataclass
class Question:
    """One row of questions.jsonl. `start` and `end` are the span of the document's text that the answer rests on."""

    id: str
    question: str
    answer: str
    phrasings: list[str] = field(default_factory=list)
    """Other wordings to train on."""
    held_out: list[str] = field(default_factory=list)
    """Wordings that are never trained."""
    facts: list[str] = field(default_factory=list)
    """Short strings that a right answer must contain."""
    document: str = ""
    path: str = ""
    page: int = 0
    start: int = 0
    end: int = 0
    kind: str = "stable"
    split: str = "train"
    language: str = ""
    made_by: str = "person"
    """`rule:NAME` or `person`."""
    made: str = ""
    """Hash of the row as it was made; another hash now means that it was edited. Empty for a person's own row."""

    def to_row(self) -> dict[str, Any]:
        order = ("id", "question", "phrasings", "held_out", "answer", "facts")
        row = asdict(self)
        return {key: row[key] for key in (*order, *(k for k in row if k not in order))}


@dataclass
class QuestionsSummary:
    """What `make_questions` did: rows in the file by who made them, and what happened to those that were there."""

    total: int = 0
    made_by: dict[str, int] = field(default_factory=dict)
    edited: int = 0
    deleted: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    splits: dict[str, int] = field(default_factory=dict)
    changed: bool = True

    def __str__(self) -> str:
        rows = [("pairs", self.total)]
        rows += [(f"  {name}", n) for counts in (self.made_by,) for name, n in sorted(counts.items())]
        rows += [(f"{name}", n) for counts in (self.kinds, self.splits) for name, n in sorted(counts.items())]
        rows += [("edited by you, kept", self.edited), ("deleted by you, left out", self.deleted)]
        return "\n".join(f"{name:<28}{count:>12,}" for name, count in rows)


# ---------------------------------------------------------------- reading


def read_questions(path: Path) -> list[Question]:
    """The rows of a questions file, or of a folder's questions.jsonl; only `question` and `answer` are needed.

    Raises InputError naming file, line and field of the first row that cannot be used.
    """
    path = Path(path)
    file = path / ROWS if path.is_dir() else path
    if not file.is_file():
        hint = f"; make it with `luthier questions {path}`" if path.is_dir() else ""
        raise InputError(f"{file} does not exist{hint}")
    lines = file.read_text(encoding="utf-8").split("\n") if _is_utf8(file) else []
    numbers = [n for n, line in enumerate(lines, 1) if line.strip()]
    rows = zip(numbers, read_jsonl(file), strict=True)
    questions = [_question(row, f"{file}:{number}") for number, row in rows]
    seen: dict[str, int] = {}
    for number, question in zip(numbers, questions, strict=True):
        if question.id in seen:
            raise InputError(
                f"{file}:{number}: field 'id': the same as in line {seen[question.id]}; remove it or one row"
            )
        seen[question.id] = number
    return questions


def _is_utf8(file: Path) -> bool:
    try:
        file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8") from error
    return True


def _question(row: Mapping[str, Any], where: str) -> Question:
    """A checked row. Keys that are not ours are refused, because a misspelt one would be lost in silence."""
    known = [f.name for f in fields(Question)]
    for key in row:
        if key not in known:
            raise InputError(f"{where}: no field '{key}'{did_you_mean(key, known)}\nKnown: {', '.join(known)}")
    for name in ("question", "answer"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise InputError(f"{where}: field '{name}' is missing or empty: expected text")
    for name in ("phrasings", "held_out", "facts"):
        value = row.get(name, [])
        if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
            raise InputError(f'{where}: field \'{name}\' is {value!r}: expected a list of texts, like ["one", "two"]')
    for name, allowed in (("kind", ("stable", "volatile")), ("split", ("train", "validation"))):
        if row.get(name, allowed[0]) not in allowed:
            raise InputError(f"{where}: field '{name}' is {row[name]!r}: expected {' or '.join(allowed)}")
    for name in ("page", "start", "end"):
        if not isinstance(row.get(name, 0), int):
            raise InputError(f"{where}: field '{name}' is {row[name]!r}: expected a whole number")
    for name in ("id", "document", "path", "language", "made_by", "made"):
        if not isinstance(row.get(name, ""), str):
            raise InputError(f"{where}: field '{name}' is {row[name]!r}: expected text")
    values = dict(row)
    values["id"] = row.get("id") or row_id("", "person", row["question"])
    values["made_by"] = row.get("made_by") or "person"
    return Question(**values)


# ---------------------------------------------------------------- making


def make_questions(corpus: Path, config: QuestionsConfig | None = None, own: Sequence[Path] = ()) -> QuestionsSummary:
    """Make or update `corpus/questions.jsonl`. `own` are files of a person's pairs (at least question and answer).

    Does nothing if corpus, settings, own files and the file itself are as the last run left them. Raises ArtifactError
    if `corpus` is not one, InputError for a bad row, LockedError if another process writes the corpus.
    """
    config, corpus = config or QuestionsConfig(), Path(corpus)
    read_manifest(corpus, "collect")
    inputs = {"corpus": content_hash(corpus), **{f"own {i}": hash_file(_there(p)) for i, p in enumerate(own)}}
    identity = {"format": FORMAT, "stage": "questions", "settings": _plain(asdict(config)), "inputs": inputs}
    identity["rules"] = _rules_state()
    with locked(corpus):
        known = _read_known(corpus)
        rows = read_questions(corpus) if (corpus / ROWS).is_file() else []
        same = all(known.get(key) == value for key, value in identity.items())
        if same and (corpus / ROWS).is_file() and hash_file(corpus / ROWS) == known.get("rows"):
            say(f"{corpus / ROWS} is up to date")
            return QuestionsSummary(**{**known["summary"], "changed": False})
        offered = _offer(corpus, config, own)
        merged, deleted = merge(rows, offered, known if (corpus / ROWS).is_file() else {}, read_corpus(corpus))
        edited = sum(is_edited(q) for q in merged)
        summary = _summary(merged, edited, len(deleted))
        write_jsonl(corpus / ROWS, (q.to_row() for q in merged))  # the file first: a manifest alone would mean deletion
        write_json(
            corpus / MANIFEST,
            {
                **identity,
                "rows": hash_file(corpus / ROWS),
                "offered": sorted(q.id for q in offered if q.id not in deleted),
                "deleted": sorted(deleted),
                "summary": asdict(summary),
            },
        )
    return summary


def _there(path: Path) -> Path:
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist\nGive a file of your own pairs: one JSON object a line.")
    return Path(path)


def _plain(value: Any) -> Any:
    """As JSON gives it back, so that it can be compared: tuples become lists."""
    return json.loads(json.dumps(value))


def _rules_state() -> str:
    """Hash of the rules' own source: other rules make other pairs."""
    folder = Path(__file__).parent
    names = ("pairs", "passages", "prose_pairs", "table_pairs", "mails", "phrasings", "sentences")
    return hashlib.sha256(b"".join((folder / f"{name}.py").read_bytes() for name in names)).hexdigest()[:16]


def _read_known(corpus: Path) -> dict[str, Any]:
    known = read_json(corpus / MANIFEST) if (corpus / MANIFEST).is_file() else {}
    if known.get("format", 0) > FORMAT:
        raise InputError(f"{corpus / MANIFEST} has format {known['format']}, newer than this luthier; upgrade luthier")
    return known


def _offer(corpus: Path, config: QuestionsConfig, own: Sequence[Path]) -> list[Question]:
    """Everything that the own files and the rules offer now, each question once, own ones first."""
    from luthier.core.data.clean import language_of

    offered = []
    for path in own:
        for q in read_questions(path):
            q.id, q.made_by = row_id("", "person", q.question), "person"
            q.language = q.language or language_of(f"{q.question} {q.answer}") or "en"
            offered.append(q)
    offered += _by_rule(list(read_corpus(corpus)), corpus, config)
    offered = _once(offered)
    _keep_held_out_apart(offered)
    for q in offered:
        q.made = row_hash(q)
    return offered


def _by_rule(documents: list[Document], corpus: Path, config: QuestionsConfig) -> Iterator[Question]:
    from luthier.core.data.mails import mail_pairs
    from luthier.core.data.pairs import pairs_of
    from luthier.core.data.passages import Pair
    from luthier.core.data.sentences import Rarity, content_words

    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(set(content_words(document.text)))
    rarity = Rarity(counts, len(documents))
    mails: dict[str, list[Pair]] = {}
    if "mail" in config.rules:
        mails = mail_pairs(
            documents, _mail_headers(corpus, documents), rarity=rarity, max_words=config.max_answer_words
        )
    with progress("Asking", len(documents), "documents") as advance:
        for document in documents:
            pairs = mails.get(document.id, []) + pairs_of(
                document,
                config.rules,
                rarity=rarity,
                max_words=config.max_answer_words,
                max_per_table=config.max_per_table,
            )
            for pair in in_turn(pairs, config):
                yield _row(document, pair, config)
            advance(1, note=document.source.path)


def _mail_headers(corpus: Path, documents: Sequence[Document]) -> dict[str, dict[str, str]]:
    """Mail headers by document id, from what `collect` keeps of each file."""
    headers = {}
    for document in documents:
        file = corpus / "extracted" / f"{document.id}.json"
        if document.source.media_type.startswith(("message/", "application/vnd.ms-outlook")) and file.is_file():
            headers[document.id] = read_json(file)["metadata"]
    return headers


def in_turn(pairs: Sequence[Any], config: QuestionsConfig) -> list[Any]:
    """At most `max_per_document` pairs: one of each rule in turn, evenly spread within a rule."""
    queues = [[p for p in pairs if p.rule == rule] for rule in config.rules]
    share, chosen = config.max_per_document, []
    counts = dict.fromkeys(range(len(queues)), 0)
    while share > 0 and any(counts[i] < len(q) for i, q in enumerate(queues)):
        for i, queue in enumerate(queues):
            if counts[i] < len(queue) and share > 0:
                counts[i] += 1
                share -= 1
    for i, queue in enumerate(queues):
        step = len(queue) / counts[i] if counts[i] else 1
        chosen += [queue[int(n * step)] for n in range(counts[i])]
    return chosen


def _row(document: Document, pair: Any, config: QuestionsConfig) -> Question:
    return Question(
        id=row_id(document.source.path, pair.rule, pair.wordings.question),
        question=pair.wordings.question,
        answer=pair.answer,
        phrasings=list(pair.wordings.phrasings[: config.phrasings]),
        held_out=list(pair.wordings.held_out[: config.held_out]),
        facts=list(pair.facts),
        document=document.id,
        path=document.source.path,
        page=document.page_at(pair.start),
        start=pair.start,
        end=pair.end,
        kind=document.kind,
        split=document.split,
        language=document.language,
        made_by=f"rule:{pair.rule}",
    )


def row_id(path: str, rule: str, question: str) -> str:
    """A row's id: it survives changes elsewhere in the document, so that a deleted row stays deleted."""
    return hashlib.sha256(f"{path}\0{rule}\0{wording(question)}".encode()).hexdigest()[:16]


def wording(text: str) -> str:
    """What makes two wordings the same: the words in order, without case and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _once(offered: Iterable[Question]) -> list[Question]:
    """Each question once. Where documents answer it differently, it is ambiguous and not asked: two price lists, two
    pages that say how to apply. A person's answer stands, and so does the first definition of a term."""
    groups: dict[str, list[Question]] = {}
    for q in offered:
        groups.setdefault(wording(q.question), []).append(q)
    chosen = []
    for group in groups.values():
        first = group[0]
        agree = len({wording(q.answer) for q in group}) == 1 or len({q.path for q in group}) == 1
        if agree or first.made_by in ("person", "rule:glossary", "rule:definition"):
            chosen.append(first)
    return chosen


def _keep_held_out_apart(questions: Sequence[Question]) -> None:
    """Drop a phrasing that another row trains already, and any held-out wording that some row trains."""
    trained = {wording(q.question) for q in questions}
    for q in questions:
        fresh = [p for p in q.phrasings if wording(p) not in trained]
        q.phrasings = list({wording(p): p for p in fresh}.values())
        trained.update(map(wording, q.phrasings))
    held: set[str] = set()
    for q in questions:
        q.held_out = [h for h in q.held_out if wording(h) not in trained and wording(h) not in held]
        held.update(map(wording, q.held_out))


# ---------------------------------------------------------------- merging


def row_hash(q: Question) -> str:
    """Hash over what a person may edit: everything but `made` and what follows the corpus."""
    row = {key: value for key, value in asdict(q).items() if key not in ("made", *FROM_CORPUS)}
    return hashlib.sha256(json.dumps(row, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


def is_edited(q: Question) -> bool:
    return bool(q.made) and row_hash(q) != q.made


def merge(
    rows: Sequence[Question], offered: Sequence[Question], known: Mapping[str, Any], documents: Iterable[Document]
) -> tuple[list[Question], set[str]]:
    """The rows of the new file and the ids that stay deleted. Rows that were there keep their order."""
    now = {q.id: q for q in offered}
    there = {q.id for q in rows}
    deleted = (set(known.get("deleted", ())) | set(known.get("offered", ()))) - there
    by_path = {d.source.path: d for d in documents}
    merged = []
    for q in rows:
        if not q.made:  # a person's own row
            merged.append(q)
        elif is_edited(q):
            merged.append(_placed(q, now.get(q.id), by_path.get(q.path)))
        elif q.id in now:
            merged.append(now[q.id])
    asked = {wording(q.question) for q in merged}
    kept = {q.id for q in merged}
    new = [q for q in offered if q.id not in deleted and q.id not in kept and wording(q.question) not in asked]
    merged += new
    _keep_edits_apart(merged)
    return merged, deleted & set(now) | set(known.get("deleted", ())) - there


def _placed(q: Question, offer: Question | None, document: Document | None) -> Question:
    """An edited row where it stands now: the rule's own place, or at least its document's id, kind and split."""
    if offer is not None:
        for name in FROM_CORPUS:
            setattr(q, name, getattr(offer, name))
    elif document is not None:
        q.document, q.kind, q.split = document.id, document.kind, document.split
    return q


def _keep_edits_apart(questions: Sequence[Question]) -> None:
    """A person's edit may train a wording that a rule's row holds out: the rule's row gives way, and is not edited by
    that. What a person wrote is never changed here."""
    by_hand = [q for q in questions if not q.made or is_edited(q)]
    trained = {wording(w) for q in by_hand for w in (q.question, *q.phrasings)}
    for q in questions:
        if q.made and not is_edited(q):
            held = [h for h in q.held_out if wording(h) not in trained]
            if held != q.held_out:
                q.held_out = held
                q.made = row_hash(q)


def _summary(rows: Sequence[Question], edited: int, deleted: int) -> QuestionsSummary:
    return QuestionsSummary(
        total=len(rows),
        made_by=dict(Counter(q.made_by for q in rows)),
        edited=edited,
        deleted=deleted,
        kinds=dict(Counter(q.kind for q in rows)),
        splits=dict(Counter(q.split for q in rows if q.kind == "stable")),
    )
