"""How did the model behave before, and how does it behave now?

Six sets of questions, each answering another doubt:

    trained       questions the model was tuned on; right answers here are memorisation and nothing more
    paraphrase    the same facts asked in wordings that a person wrote and training never saw
    rephrased     the same facts in held-out wordings made by rule (`held_out` in questions.jsonl)
    unseen        facts from documents that were held out of all training
    volatile      facts that change (news, stock): never trained, looked up
    unanswerable  nothing in the documents answers them; the right answer is to say so

and up to four systems: the model `before` tuning, the `tuned` model alone, the index alone (`retrieved`: it quotes the
best sentence with file and page), and `both` (it quotes above a score threshold, else the model answers). Beside the
questions, bits per byte on held-out company text: a tokenizer-independent measure of how well the model predicts it,

    bpb = Σ −log₂ p(token) / Σ bytes(token)          over documents of the validation split, in windows of `context`.

A held-out question whose wording was trained after all is left out and counted, so a leak cannot flatter the numbers.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.artifacts import Artifact, read_jsonl, read_manifest, write_json, write_jsonl
from luthier.core.console import progress, say
from luthier.core.data.corpus import read_corpus
from luthier.core.data.questions import read_questions
from luthier.core.errors import InputError
from luthier.core.evaluation.metrics import Estimate, bootstrap, exact_match, has_facts, normalise, token_f1, wilson
from luthier.core.evaluation.samples import Sample

if TYPE_CHECKING:
    from luthier.core.assistant.assistant import Answer, AssistantConfig
    from luthier.models.transformer import Transformer
    from luthier.tokenizers.bpe import Tokenizer

__all__ = [
    "SETS",
    "EvaluateConfig",
    "EvaluationQuestion",
    "bits_per_byte",
    "evaluate",
    "question_sets",
    "read_evaluation",
]

SETS = ("trained", "paraphrase", "rephrased", "unseen", "volatile", "unanswerable")
OWN_SETS = ("paraphrase", "volatile", "unanswerable")


@dataclass(frozen=True)
class EvaluateConfig:
    """Settings of `luthier evaluate`."""

    questions_per_set: int = 200
    """Most questions asked of one set; more are thinned evenly, which the report says."""
    context: int = 256
    """Window for bits per byte, in tokens; each window starts without memory of the one before."""
    resamples: int = 2000
    """Bootstrap resamples for the 95% intervals of averages (Efron 1979)."""
    seed: int = 0
    """Seed of the bootstrap."""


@dataclass(frozen=True)
class EvaluationQuestion:
    """One question with what a right answer says. `facts` must all stand in the answer; `about` is the document."""

    question: str
    answer: str
    set: str
    facts: tuple[str, ...] = ()
    language: str = "en"
    about: str = ""


@dataclass
class Evaluation:
    """What `evaluate` returns: the folder, the numbers in it, and whether they were measured now."""

    out: Path
    results: dict[str, Any] = field(default_factory=dict)
    changed: bool = True


# ---------------------------------------------------------------- the questions


def read_evaluation(path: Path) -> list[EvaluationQuestion]:
    """Read a person's evaluation questions: JSON lines with `question`, `set` and, but for unanswerable ones, `answer`
    and `facts`; `language` and `about` (a document's path) if known. Raises InputError naming file, line and field."""
    rows = []
    for number, row in enumerate(read_jsonl(path), 1):
        where = f"{path}:{number}"
        if not str(row.get("question", "")).strip():
            raise InputError(f"{where}: field 'question' is missing or empty")
        if row.get("set") not in OWN_SETS:
            raise InputError(f"{where}: field 'set' is {row.get('set')!r}; it must be one of {', '.join(OWN_SETS)}")
        if row["set"] != "unanswerable" and not row.get("facts"):
            raise InputError(f"{where}: field 'facts' is missing: the short strings that a right answer must contain")
        rows.append(
            EvaluationQuestion(
                row["question"],
                row.get("answer", ""),
                row["set"],
                tuple(row.get("facts", ())),
                row.get("language", "en"),
                row.get("about", ""),
            )
        )
    return rows


def question_sets(
    corpus: Path | None, own: Sequence[Path], trained: Path | None
) -> tuple[list[EvaluationQuestion], int]:
    """All evaluation questions, and how many were left out because their wording was trained.

    `corpus` gives questions.jsonl; `own` are files for `read_evaluation`; `trained` is the tuned model's
    trained_pairs.jsonl, the only source of the set `trained` and of the check for leaks.
    """
    pairs = list(read_jsonl(trained)) if trained is not None and trained.is_file() else []
    wordings = {normalise(row["question"]) for row in pairs}
    questions: list[EvaluationQuestion] = []
    seen_answers: set[str] = set()
    for row in pairs:
        if row.get("id", row["question"]) in seen_answers:
            continue
        seen_answers.add(row.get("id", row["question"]))
        facts, language = tuple(row.get("facts", ())), row.get("language", "en")
        questions.append(
            EvaluationQuestion(row["question"], row["answer"], "trained", facts, language, row.get("path", ""))
        )
    held_out: list[EvaluationQuestion] = [q for path in own for q in read_evaluation(path)]
    if corpus is not None and (corpus / "questions.jsonl").is_file():
        for q in read_questions(corpus):
            facts = tuple(q.facts)
            if q.kind == "volatile":
                held_out.append(EvaluationQuestion(q.question, q.answer, "volatile", facts, q.language, q.path))
            elif q.split == "validation":
                held_out.append(EvaluationQuestion(q.question, q.answer, "unseen", facts, q.language, q.path))
            elif q.id in seen_answers or normalise(q.question) in wordings:
                held_out += [
                    EvaluationQuestion(h, q.answer, "rephrased", facts, q.language, q.path) for h in q.held_out[:1]
                ]
    clean = [q for q in held_out if normalise(q.question) not in wordings]
    return questions + clean, len(held_out) - len(clean)


def thin(questions: Sequence[EvaluationQuestion], most: int) -> list[EvaluationQuestion]:
    """At most `most` questions of each set, evenly spaced, in order."""
    chosen = []
    for name in SETS:
        members = [q for q in questions if q.set == name]
        step = max(1.0, len(members) / most)
        chosen += [members[int(i * step)] for i in range(min(most, len(members)))]
    return chosen


# ---------------------------------------------------------------- judging


def judge(question: EvaluationQuestion, system: str, answer: Answer) -> Sample:
    """Compare one answer with what was expected."""
    source = answer.source
    return Sample(
        set=question.set,
        system=system,
        question=question.question,
        expected=question.answer,
        answer=answer.text,
        path=answer.path,
        source=f"{source.path}, page {source.page}" if source and source.page else source.path if source else "",
        exact_match=exact_match(answer.text, question.answer),
        f1=token_f1(answer.text, question.answer),
        fact=has_facts(answer.text, question.facts) if question.facts else None,
        right_source=float(source.path == question.about) if source and question.about else None,
        not_found=float(answer.path == "none"),
        score=answer.score,
        language=question.language,
    )


def summarise(samples: Iterable[Sample], config: EvaluateConfig) -> list[dict[str, Any]]:
    """One row a set and system: every metric with its 95% interval, and which path gave the answers."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.set, sample.system), []).append(sample)

    def rate(values: Iterable[float | None]) -> dict[str, float]:
        return asdict(wilson([v for v in values if v is not None]))

    rows = []
    for (name, system), group in groups.items():
        f1: Estimate = bootstrap([s.f1 for s in group], resamples=config.resamples, seed=config.seed)
        rows.append(
            {
                "set": name,
                "system": system,
                "n": len(group),
                "exact_match": rate(s.exact_match for s in group),
                "f1": asdict(f1),
                "fact": rate(s.fact for s in group),
                "right_source": rate(s.right_source for s in group),
                "not_found": rate(s.not_found for s in group),
                "paths": dict(Counter(s.path for s in group)),
            }
        )
    return rows


# ---------------------------------------------------------------- bits per byte


def bits_per_byte(
    model: Transformer, tokenizer: Tokenizer, texts: Iterable[str], config: EvaluateConfig | None = None
) -> dict[str, float]:
    """Bits per UTF-8 byte of `texts` under `model`, with a bootstrap interval over windows.

    Each window of `context` tokens starts with the last token before it (the end-of-text token at a document's start).
    Returns value, low, high, bytes, tokens. Raises InputError if the texts hold nothing.
    """
    import numpy as np
    import torch

    config = config or EvaluateConfig()
    context = min(config.context, model.config.max_position_embeddings)
    bits, sizes, tokens = [], [], 0
    lengths = np.array([len(token) for token in tokenizer.tokens])
    with torch.inference_mode():
        for text in texts:
            ids = np.concatenate([[tokenizer.eos_id], tokenizer.encode_ordinary(text)]).astype(np.int64)
            for start in range(0, len(ids) - 1, context):
                window = torch.from_numpy(ids[start : start + context + 1])
                loss, count = model.loss(window[None, :-1], window[None, 1:])
                bits.append(float(loss) / math.log(2))
                sizes.append(int(lengths[ids[start + 1 : start + context + 1]].sum()))
                tokens += int(count)
    if not sizes:
        raise InputError("no held-out text to measure bits per byte on")
    b, s = np.array(bits), np.array(sizes, dtype=np.float64)
    draws = np.random.default_rng(config.seed).integers(0, len(b), size=(config.resamples, len(b)))
    low, high = np.quantile(b[draws].sum(axis=1) / s[draws].sum(axis=1), [0.025, 0.975])
    value = float(b.sum() / s.sum())
    return {"value": value, "low": float(low), "high": float(high), "bytes": int(s.sum()), "tokens": tokens}


# ---------------------------------------------------------------- the stage


def evaluate(
    models: Sequence[Path],
    out: Path,
    config: EvaluateConfig | None = None,
    *,
    corpus: Path | None = None,
    index: Path | None = None,
    questions: Sequence[Path] = (),
    vectors: Sequence[Path] = (),
    assistant: AssistantConfig | None = None,
    overwrite: bool = False,
) -> Evaluation:
    """Ask every question of every system, write results.json, samples.jsonl and report.html into `out`.

    `models` are one or two model folders: before tuning, and after. `corpus` gives the held-out text and the rule-made
    questions, `index` the retrieval, `questions` a person's evaluation files, `vectors` folders to draw a map of.
    Raises InputError without any question or model.
    """
    from luthier.core.assistant.assistant import AssistantConfig

    config, assistant = config or EvaluateConfig(), assistant or AssistantConfig()
    if not 1 <= len(models) <= 2:
        raise InputError(f"evaluate takes one model, or two (before and after); {len(models)} were given")
    inputs: dict[str, Path | str | None] = {f"model {i}": Path(m) for i, m in enumerate(models)}
    inputs |= {"corpus": corpus, "index": index} | {f"questions {q.name}": q for q in questions}
    if corpus is not None and (corpus / "questions.jsonl").is_file():
        inputs["corpus questions"] = corpus / "questions.jsonl"
    inputs |= {f"vectors {v.name}": v for v in vectors}
    settings = {"evaluate": asdict(config), "assistant": asdict(assistant)}
    work = Artifact(out, "evaluate", settings, inputs, overwrite=overwrite)
    if work.done:
        say(f"{out} is up to date")
        return Evaluation(out, json.loads((out / "results.json").read_text(encoding="utf-8")), changed=False)
    if index is not None:
        read_manifest(index, "index")  # refused now rather than after the first system's answers
    asked, leaked = question_sets(corpus, questions, Path(models[-1]) / "trained_pairs.jsonl")
    chosen = thin(asked, config.questions_per_set)
    if not chosen:
        raise InputError(
            "nothing to evaluate: no trained pairs beside the model, no questions in the corpus, no --questions"
        )
    with work:
        results: dict[str, Any] = {"models": _model_names(models), "left_out_as_trained": leaked}
        results["questions"] = {
            name: {"all": sum(q.set == name for q in asked), "asked": sum(q.set == name for q in chosen)}
            for name in SETS
        }
        if corpus is not None:
            results["bits_per_byte"] = _held_out_bits(models, corpus, config)
        samples = list(ask(models, index, chosen, assistant))
        results["table"] = summarise(samples, config)
        write_json(work.folder / "results.json", results)
        write_jsonl(work.folder / "samples.jsonl", (asdict(s) for s in samples))
        from luthier.core.evaluation.report import write_report

        write_report(work.folder / "report.html", results, samples, models=models, corpus=corpus, vectors=vectors)
    return Evaluation(out, results)


def _model_names(models: Sequence[Path]) -> dict[str, str]:
    names = ("before", "tuned") if len(models) == 2 else ("tuned",)
    return {name: str(path) for name, path in zip(names, models, strict=True)}


def ask(
    models: Sequence[Path], index: Path | None, questions: Sequence[EvaluationQuestion], config: AssistantConfig
) -> Iterable[Sample]:
    """Yield every system's judged answers. Systems: before, tuned, retrieved, both (the last two with an index)."""
    from luthier.core.assistant.assistant import Assistant

    systems: list[tuple[str, Path | None, Path | None, str]] = [
        (name, Path(path), None, "tuned") for name, path in _model_names(models).items()
    ]
    if index is not None:
        systems += [("retrieved", None, index, "retrieved"), ("both", Path(models[-1]), index, "both")]
    with progress("Asking", len(systems) * len(questions), "questions") as advance:
        for system, model, store, mode in systems:
            helper = Assistant(model, store, config)
            for name in SETS:
                members = [q for q in questions if q.set == name]
                if members:
                    answers = helper.answers([q.question for q in members], mode=mode)
                    yield from (judge(q, system, a) for q, a in zip(members, answers, strict=True))
                    advance(len(members), note=f"{system}, {name}")


def _held_out_bits(models: Sequence[Path], corpus: Path, config: EvaluateConfig) -> dict[str, Any] | None:
    """Bits per byte of each model on the corpus' validation documents; None where there is none."""
    from luthier.models.adapter_files import open_model
    from luthier.tokenizers.formats import load_tokenizer

    texts = [d.text for d in read_corpus(corpus) if d.split == "validation" and d.kind == "stable"]
    if not texts:
        say("no document is held out (validation): bits per byte is not measured")
        return None
    measured = {
        name: bits_per_byte(open_model(Path(path)), load_tokenizer(Path(path)), texts, config)
        for name, path in _model_names(models).items()
    }
    return {"documents": len(texts), **measured}
