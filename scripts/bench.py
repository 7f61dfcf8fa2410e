"""`luthier bench`: speed side by side with the tools that everyone names. The work is in `core/benchmarks/`.

`bench kernels` has a command line of its own, which needs the standard library only: it runs on lent and rented GPU
machines, as `PYTHONPATH=.types python -m luthier.scripts.bench kernels` without an install, where tyro is missing.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from luthier.core.errors import ConfigError
from luthier.scripts.cli import parse, run

try:
    import tyro

    Often = tyro.conf.UseAppendAction
except ImportError:  # a bare GPU machine: no Command, but `bench kernels`
    Often = None


@dataclass
class Command:
    """Measure this library beside its peers on this machine: results are compared first, then times, in turn.

    Goes in: what to measure; texts and vocabularies of your own, or what every machine has.

    Comes out: a table for each group of cases (ours and each peer, the ratio to the fastest of them, above 1 where ours
    is better, and the noise), what it comes to, and as the last line one JSON document with machine, versions, commit
    and all rows. Exit code 1 if a result is not equal.

    Example: luthier bench tokenizers --vocab cl100k_base.tiktoken --text novel.txt --only encode,cold

    `luthier bench kernels` has flags of its own: luthier bench kernels --help.

    Takes minutes; --only and --repeats make it shorter. Peers that are not installed are left out:
    pip install -e ".[bench]" brings them.
    """

    what: tyro.conf.Positional[Literal["tokenizers", "vectors", "model", "training", "kernels"]]
    """What to measure."""
    text: Annotated[tuple[Path, ...], Often] = ()
    """Text file to measure on; given several times, each is a kind of text. Left out: for tokenizers Python's
    documentation and source and a made text of fourteen scripts, for vectors the documentation."""
    vocab: Annotated[tuple[Path, ...], Often] = ()
    """Only tokenizers: a vocabulary to encode with, tiktoken's ranks by their usual name (cl100k_base.tiktoken …), a
    folder or tokenizer.json, or a SentencePiece .model; may be given several times. Left out: one is trained."""
    only: str = ""
    """Groups of cases to measure, with commas between; left out, all. tokenizers: encode, cold, threads, short, decode,
    count, first, train, unigram. vectors: speed, ngrams, glove, quality, memory, nearest. model: forward, train,
    decode, memory, compiled (only if named), shapes: 5M, 27M, 22M-32k, and families: llama, gpt2. training: quality,
    loop, tuning."""
    own: Annotated[str, tyro.conf.arg(name="with")] = ""
    """FILE.py:FUNCTION of your own to race too. tokenizers: it is called with the vocabulary's file or folder and
    returns an encoder, which is called with a text and returns its ids. model: it is called with the ModelConfig and a
    dict of weights and returns a module that makes logits of ids. vectors: with words as rows
    (vector_texts.Source) and a seed; it returns vectors."""
    sets: tuple[Path, ...] = ()
    """Only vectors: word sets to compare quality on, as for `luthier evaluate`."""
    peer: Annotated[tuple[str, ...], Often] = ()
    """NAME=PATH of what to race too. vectors: word2vec, fasttext, or glove (the folder of its build). model: litgpt
    (the folder it was installed into) or nanogpt (its model.py). training: nanogpt (a checkout's folder)."""
    keep: Path | None = None
    """Only vectors: file of the runs of quality. A run that it holds is not made again, so that an hour's work can be
    stopped and goes on."""
    against: Path | None = None
    """A saved result: also print how each row changed since, and which changes are more than noise."""
    repeats: int = 5
    """Times each tool is measured; a slow one sits out after some seconds."""
    seconds: float = 0.0
    """Only training: most seconds of one run of quality; one that has not reached the loss by then is not equal. 0:
    half an hour."""
    save: bool = False
    """Keep the result in docs/benchmarks/WHAT-HARDWARE-MONTH.json; rows that are there and were not measured again
    stay."""


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["kernels"]:
        from luthier.core.benchmarks import kernels

        return kernels.main(arguments[1:])
    command = parse(Command, "bench", arguments)
    if command.repeats < 1:
        raise ConfigError(f"repeats = {command.repeats}: expected 1 or more")
    measure = import_module(f"luthier.core.benchmarks.{command.what}").run
    given = _arguments(command, measure)
    from luthier.core.benchmarks import report

    then = report.read(command.against, command.what) if command.against else None
    load = os.getloadavg()[0]
    result = report.document(command.what, measure(**given), load)
    colour = report.colourful()
    print("\n" + report.tables(result, colour))
    if then:
        print("\n" + report.the_change(result, then, colour))
    if command.save:
        print(f"saved as {report.save(result)}")
    print(json.dumps(result, ensure_ascii=False))
    return 0 if all(row["equal"] for row in result["rows"]) else 1


def _arguments(command: Command, measure: Callable[..., Any]) -> dict[str, Any]:
    """What this benchmark takes. Raises ConfigError for a flag that it does not."""
    known = inspect.signature(measure).parameters
    flags = {
        "texts": ("text", command.text),
        "vocabs": ("vocab", command.vocab),
        "only": ("only", tuple(name.strip() for name in command.only.split(",") if name.strip())),
        "own": ("with", command.own or None),
        "sets": ("sets", command.sets),
        "peer": ("peer", command.peer),
        "keep": ("keep", command.keep),
        "repeats": ("repeats", command.repeats),
        "seconds": ("seconds", command.seconds),
    }
    if "text" in known and len(command.text) < 2:  # one that measures on a single text
        flags["text"] = ("text", command.text[0] if command.text else None)
        del flags["texts"]
    for name, (flag, value) in flags.items():
        if value and name not in known:
            raise ConfigError(f"bench {command.what} takes no {'second ' * (flag == 'text')}--{flag}")
    return {name: value for name, (_, value) in flags.items() if name in known and (value or name != "seconds")}


if __name__ == "__main__":
    sys.exit(run(main))
