"""The `luthier` command: one table of verbs, each a thin module of this folder.

Only the chosen verb's module is imported, so `luthier --help` and `luthier VERB --help` answer at once. A verb's module
holds a dataclass `Command` (what it reads is positional, what it writes is `--out`, the rest are the fields of the
stage's own config) and `main(argv)`. The same file runs alone: `python scripts/collect.py …`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module, metadata
from typing import TypeVar

from luthier.core.errors import LuthierError, did_you_mean

__all__ = ["VERBS", "main", "parse", "run"]

# verb → (module, summary). Groups are separated where the key is a title in capitals.
VERBS: dict[str, dict[str, tuple[str, str]]] = {
    "The whole process": {
        "demo": ("demo", "a sample company's documents become an assistant, in under three minutes"),
        "new": ("new", "start a project folder with its luthier.toml"),
        "run": ("run", "do every stage of a project that is not up to date; --watch keeps going"),
    },
    "Data": {
        "collect": ("collect", "documents (PDF, Word, scans, mail, web pages …) into a clean corpus"),
        "questions": ("questions", "question-and-answer pairs from a corpus, by rule, for you to edit"),
        "encode": ("encode", "a corpus into shards of token ids"),
    },
    "Models": {
        "train-tokenizer": ("train_tokenizer", "a byte-level BPE tokenizer from text"),
        "train-vectors": ("train_vectors", "Word2Vec or GloVe vectors from text or tokens"),
        "pretrain": ("pretrain", "a decoder model from shards, its embedding started from vectors"),
        "finetune": ("finetune", "a model on conversations or question-and-answer pairs"),
        "export": ("export", "a model for other programs, GGUF too, and the proof that it says the same"),
        "evaluate": ("evaluate", "how a model behaves before and after tuning, with a report"),
    },
    "Assistant": {
        "index": ("index", "a corpus into a searchable index for looking facts up"),
        "chat": ("chat", "talk with the assistant in the terminal"),
        "write": ("write", "one text a row from a template and a table"),
        "serve": ("serve", "the assistant over HTTP: OpenAI's chat API and a chat page"),
    },
    "Looking and measuring": {
        "show": ("show", "what any file or folder of the process is, for human eyes"),
        "replay": ("replay", "a step of a training run once more: its batch, pages, costs and gradients"),
        "verify": ("verify", "random stretches of a training run again: bit-equal, or where it differs"),
        "bench": ("bench", "speed side by side with the tools that everyone names"),
    },
}

T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code: 0 done, 1 an error that is explained, 2 wrong usage, 130 interrupted."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    modules = {verb: entry for group in VERBS.values() for verb, entry in group.items()}
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return run(lambda _: print(overview()), [])
    if arguments[0] == "--version":
        print(f"luthier {metadata.version('luthier')}")
        return 0
    verb, *rest = arguments
    if verb not in modules:
        print(f"luthier: no verb '{verb}'{did_you_mean(verb, modules)}\nSee luthier --help.", file=sys.stderr)
        return 2
    # Imported inside, where Ctrl-C is heard: the first half second of a verb is its imports.
    return run(lambda argv: import_module(f"luthier.scripts.{modules[verb][0]}").main(argv), rest)


def overview() -> str:
    """The text of `luthier --help`."""
    lines = ["luthier: your own language model, made by hand, every stage open on the bench", ""]
    lines += ["usage: luthier VERB …          luthier VERB --help explains one verb"]
    for title, verbs in VERBS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {verb:<16}{summary}" for verb, (_, summary) in verbs.items()]
    return "\n".join([*lines, "", "Start with: luthier demo"])


def run(verb_main: Callable[[Sequence[str] | None], int | None], argv: Sequence[str] | None = None) -> int:
    """Call a verb's main and turn the errors meant for the user into a short message; `--debug` shows the traceback."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    try:
        try:
            return verb_main([a for a in arguments if a != "--debug"]) or 0
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("\nluthier: interrupted; what was finished is kept, the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `luthier show X | head -1`: nobody reads any more, and nothing need be said
        _close_stdout()
        return 1
    except Exception as error:
        if debug or not (isinstance(error, OSError) or _for_the_user(error) or _disk_is_full(error)):
            raise
        print(f"luthier: {_said(error)}", file=sys.stderr)
        return 1


def _close_stdout() -> None:
    """Send what is still buffered nowhere, so that the interpreter's last flush does not complain."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _said(error: BaseException) -> str:
    """An error in words; one of the operating system's as the file it is about and what is the matter with it."""
    said = str(error)
    if isinstance(error, OSError) and error.strerror:
        said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return f"{said}\nMake room on the disk and start the same command again." if _disk_is_full(error) else said


def _disk_is_full(error: BaseException) -> bool:
    """Whether a disk is full, or a quota; safetensors says it in a class of its own."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return type(error).__name__ == "SafetensorError" and f"os error {errno.ENOSPC}" in str(error)


def _for_the_user(error: BaseException) -> bool:
    """Errors of our own classes explain themselves; a bare ValueError or TypeError is a defect and keeps its trace."""
    return isinstance(error, LuthierError) or type(error).__module__.startswith("luthier.")


def parse(command: type[T], verb: str, argv: Sequence[str] | None) -> T:
    """Build `command` (a dataclass) from the command line; its docstring is the help's description."""
    import tyro

    return tyro.cli(command, args=argv, prog=f"luthier {verb}", config=(tyro.conf.OmitArgPrefixes,))


if __name__ == "__main__":
    sys.exit(main())
