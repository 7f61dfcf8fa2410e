"""`luthier evaluate`: how a model behaves before and after, what vectors know. The work is in `core/evaluation/`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from luthier.core.errors import ConfigError
from luthier.core.evaluation.evaluate import EvaluateConfig, evaluate
from luthier.core.evaluation.vectors import evaluate_vectors
from luthier.core.show.evaluation import print_evaluation
from luthier.scripts.cli import parse, run


@dataclass
class Command:
    """Measure a model, or two (before and after tuning), on questions and on held-out text; or vectors on word sets.

    Goes in: one or two model folders; a corpus for held-out text and rule-made questions; an index for retrieval; your
    own questions as JSON lines {"question", "set", "answer", "facts"} with set paraphrase, volatile or unanswerable. Or
    a vectors folder (or a file of word2vec's or GloVe's: .bin, .txt, .vec) and --sets of similarities, analogies and
    categories as they are published (MEN, SimLex, questions-words.txt, a folder of GloVe's question-data, AP, …).

    Comes out: a folder with results.json (every number with its 95% interval) and report.html (one page with plots);
    of a model samples.jsonl (every answer), of vectors map.svg. The table is printed too.

    Example: luthier evaluate build/model build/tuned --corpus build/corpus --index build/index --out evaluation/

    Takes about 10 s for 300 questions with a model of 3 million parameters on 2 cores; 10 s for the 19,544 questions of
    questions-words.txt with 50,000 vectors.
    """

    models: tyro.conf.Positional[tuple[Path, ...]]
    """One model folder, or two: before tuning and after. Or vectors."""
    sets: tuple[Path, ...] = ()
    """Word sets to measure vectors on: files, or folders of analogies."""
    corpus: Path | None = None
    """Corpus whose validation documents give bits per byte and whose questions.jsonl gives rule-made questions."""
    index: Path | None = None
    """Index to answer from; without it only the models are asked."""
    questions: tuple[Path, ...] = ()
    """Your own evaluation questions, JSON lines."""
    vectors: tuple[Path, ...] = ()
    """Vectors folders to draw a map of in the report."""
    out: Path = Path("evaluation")
    """Folder for the results."""
    overwrite: bool = False
    """Replace different results in --out."""
    json: bool = False
    """Print the results as JSON instead of a table."""
    config: EvaluateConfig = field(default_factory=EvaluateConfig)


def main(argv: Sequence[str] | None = None) -> int:
    command = parse(Command, "evaluate", argv)
    if command.sets or (len(command.models) == 1 and (command.models[0] / "vectors.safetensors").is_file()):
        return _vectors(command)
    result = evaluate(
        command.models,
        command.out,
        command.config,
        corpus=command.corpus,
        index=command.index,
        questions=command.questions,
        vectors=command.vectors,
        overwrite=command.overwrite,
    )
    if command.json:
        print(json.dumps(result.results))
    else:
        print_evaluation(result.results)
        print(f"\nreport: {result.out / 'report.html'}")
    return 0


def _vectors(command: Command) -> int:
    from luthier.core.show.vector_scores import print_scores

    others = {"corpus": command.corpus, "index": command.index, "questions": command.questions}
    if len(command.models) != 1 or any(others.values()):
        raise ConfigError("--sets measures one vectors folder or file, without --corpus, --index and --questions")
    scores = evaluate_vectors(command.models[0], command.sets, command.out, overwrite=command.overwrite)
    if command.json:
        print((command.out / "results.json").read_text(encoding="utf-8"))
    else:
        print_scores(scores)
        print(f"\nreport: {command.out / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
