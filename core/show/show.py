"""What a file or folder is, for human eyes.

An artefact says in its manifest which stage made it; a file is known by its name and first line, a model folder of
other makers by its config.json. Each kind has its view in this folder, imported only when it is shown. What is nothing
of ours is said to be so, with what would be done with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.artifacts import read_json, read_jsonl, read_manifest
from luthier.core.console import counted
from luthier.core.data.texts import COLUMN
from luthier.core.errors import InputError, did_you_mean
from luthier.core.show.kernels import PREFIX, show_kernel

__all__ = ["show"]

BUILT = ("corpus", "tokenizer", "shards", "vectors-word2vec", "vectors-glove", "model", "tuned", "index", "evaluation")
MARKS = ("manifest.json", "config.json", "model.safetensors", "results.json", "index.sqlite", "luthier.toml")
WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
VIEWED = (
    "a project, a corpus, questions, a tokenizer, shards, vectors, a model, an index, an evaluation, metrics.jsonl, "
    "conversations"
)


@dataclass(frozen=True)
class Wish:
    """What else a view is to show: a text to try the artefact on, a word whose merges are wanted, a corpus to report
    on and the column of its text, words whose neighbours and analogies are wanted, a file for a page."""

    text: str | None = None
    word: str | None = None
    report: Path | None = None
    near: Sequence[str] = ()
    analogy: Sequence[str] = ()
    page: Path | None = None
    column: str = COLUMN


def show(
    path: Path,
    *,
    text: str | None = None,
    word: str | None = None,
    report: Path | None = None,
    near: Sequence[str] = (),
    analogy: Sequence[str] = (),
    step: int | None = None,
    others: Sequence[Path] = (),
    page: Path | None = None,
    column: str = COLUMN,
) -> None:
    """Print the human view of `path` to stdout.

    `text` is tried on a tokenizer, a model or an index; `word` and `report` (a corpus; `column` as in
    core/data/texts.py) on a tokenizer, also that of a model; `near` and `analogy` (three words: what is nearest to
    a - b + c?) on vectors; `step` of a training run shows the file and page of all that is in its batch, `others` are
    runs whose curves are drawn beside this one's.
    Raises InputError if `path` does not exist or is nothing that luthier knows; `kernel:attention` and the like are
    kernels.
    """
    path, wish = Path(path), Wish(text, word, report, near, analogy, page, column)
    if step is not None:
        from luthier.core.show.step import show_step

        return show_step(path, step)
    if others:
        from luthier.core.show.curve import show_curves

        return show_curves([path, *others])
    if (word is not None or report is not None) and (path.is_file() or _holds_tokenizer(path)):
        _tokenizer(path, wish)
    elif path.is_dir():
        _folder(path, wish)
    elif path.is_file():
        _file(path, wish)
    elif str(path).startswith("hub:"):
        from luthier.models.checkpoints import hub_folder

        _model(hub_folder(path), wish)
    elif str(path).startswith(PREFIX):
        show_kernel(str(path))
    else:
        raise InputError(f"{path}: no such file or folder{_meant(path)}")


def _meant(path: Path) -> str:
    """What else a path to nothing may mean: a neighbour of a like name, or a model on the hub."""
    if path.is_symlink():
        return f"; it is a link to {path.readlink()}, which is not there"
    near = did_you_mean(path.name, (p.name for p in path.parent.iterdir())) if path.parent.is_dir() else ""
    owned = not path.is_absolute() and len(path.parts) == 2 and ".." not in path.parts
    return near or (f"\nA model on the hub is downloaded and shown by: luthier show hub:{path}" if owned else "")


# ---------------------------------------------------------------- folders


def _folder(path: Path, wish: Wish) -> None:
    stage = _stage(path)
    if stage in STAGES:
        STAGES[stage](path, wish)
        _made(path)
    elif stage:
        raise InputError(f"{path} was made by `luthier {stage}`, which this luthier has no view of; upgrade luthier")
    elif (path / "luthier.toml").is_file():
        _project(path)
    elif (path / "config.json").is_file() or (path / "adapter_config.json").is_file():
        _model(path, wish)
    elif (path / "run.json").is_file():
        _run(path)
    elif (path / "state.json").is_file():
        raise InputError(
            f"{path} is a checkpoint of a run\nMake a model folder of it: luthier export {path} --out model"
        )
    elif weights := [f.name for ending in WEIGHTS for f in sorted(path.glob(ending))]:
        raise InputError(
            f"{path} holds weights ({weights[0]}{' …' if len(weights) > 1 else ''}) and no config.json, which says "
            "what model they are of\nCopy it there from where the weights come from."
        )
    elif _holds_tokenizer(path):
        _tokenizer(path, wish)
    elif (path / "work.json").is_file():
        raise InputError(f"{path} is an artefact in the making; the command that was interrupted goes on with it")
    else:
        files = sum(1 for p in path.rglob("*") if p.is_file())
        raise InputError(
            f"{path} is a folder of {counted(files, 'file')}, and nothing that luthier made\n"
            f"Documents become a corpus by `luthier collect {path}`. What can be shown: {VIEWED}."
        )


def _stage(folder: Path) -> str:
    """The stage that made an artefact; empty for a folder without a manifest of ours."""
    if not (folder / "manifest.json").is_file():
        return ""
    manifest = read_json(folder / "manifest.json")
    ours = isinstance(manifest, dict) and {"stage", "format", "outputs"} <= manifest.keys()
    return read_manifest(folder)["stage"] if ours else ""


def _holds_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer lies in a folder, in one of the formats that are read."""
    ways = (("tokenizer.json",), ("tokenizer.model",), ("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))
    return any(all((folder / name).is_file() for name in names) for names in ways)


def _corpus(path: Path, _: Wish) -> None:
    from luthier.core.show.corpus import show_corpus

    show_corpus(path)


def _tokenizer(path: Path, wish: Wish) -> None:
    from luthier.core.show.tokenizer import show_tokenizer

    show_tokenizer(path, wish.text, word=wish.word, report=wish.report, column=wish.column)


def _shards(path: Path, _: Wish) -> None:
    from luthier.core.show.shards import show_shards

    show_shards(path)


def _vectors(path: Path, wish: Wish) -> None:
    from luthier.core.show.vectors import show_vectors

    show_vectors(path, near=tuple(wish.near), analogy=tuple(wish.analogy))


def _model(path: Path, wish: Wish) -> None:
    from luthier.core.show.model import show_model

    show_model(path, wish.text, wish.page)
    if (path / "run.json").is_file():
        from luthier.core.show.choices import show_choices

        show_choices(path)
    if (path / "metrics.jsonl").is_file():
        from luthier.core.show.curve import show_losses

        print()
        show_losses(path / "metrics.jsonl")
    if (path / "trained_pairs.jsonl").is_file():
        _example(path)


def _run(path: Path) -> None:
    """A run that has not written its model yet."""
    from luthier.core.show.choices import show_choices
    from luthier.core.show.curve import show_losses

    print(f"{path}: a run in the making; the command that was interrupted goes on with it")
    show_choices(path)
    if (path / "metrics.jsonl").is_file():
        print()
        show_losses(path / "metrics.jsonl")


def _example(model: Path) -> None:
    """One of the pairs that the model was tuned on, as the model met it."""
    from luthier.core.data.conversations import Message, encode_conversation
    from luthier.core.show.conversations import show_example
    from luthier.tokenizers.formats import load_tokenizer

    row = next(iter(read_jsonl(model / "trained_pairs.jsonl")), None)
    if row is not None:
        print(f"\nA training example ({row.get('path') or 'your own pair'}):\n")
        tokenizer = load_tokenizer(model)
        messages = [Message("user", row["question"]), Message("assistant", row["answer"])]
        show_example(tokenizer, *encode_conversation(tokenizer, messages))


def _index(path: Path, wish: Wish) -> None:
    from luthier.core.show.index import show_index

    show_index(path, wish.text)


def _evaluation(path: Path, _: Wish) -> None:
    from luthier.core.show.evaluation import show_evaluation

    show_evaluation(path)


def _scores(path: Path, _: Wish) -> None:
    from luthier.core.show.vector_scores import show_scores

    show_scores(path)


STAGES: dict[str, Callable[[Path, Wish], None]] = {
    "collect": _corpus,
    "train-tokenizer": _tokenizer,
    "encode": _shards,
    "train-vectors": _vectors,
    "pretrain": _model,
    "finetune": _model,
    "export": _model,
    "index": _index,
    "evaluate": _evaluation,
    "evaluate-vectors": _scores,
}


def _made(path: Path) -> None:
    """How an artefact was made: command, time, settings that matter to nobody else left out."""
    manifest = read_manifest(path)
    run = manifest.get("run", {})
    inputs = ", ".join(f"{name} {value[:8]}" for name, value in manifest["inputs"].items())
    print(f"\nmade by: {run.get('command', 'luthier ' + manifest['stage'])}")
    print(
        f"         {run.get('finished', 'unknown time')}, {run.get('seconds', 0):,.1f} s, on {run.get('machine', '?')}"
    )
    print(f"         from {counted(len(manifest.get('documents', [])), 'document')}; inputs {inputs or 'none'}")


def _project(path: Path) -> None:
    """The state of a project: what is built, when, how long it took, how large it is."""
    from luthier.core.project import load_project

    project = load_project(path)
    print(f"{path}: the project {project.config.name or path.resolve().name}")
    print(f"documents: {', '.join(project.config.documents)}\n")
    for name in BUILT:
        folder = project.built(name)
        if folder.is_dir() and _stage(folder):
            run = read_manifest(folder)["run"]
            size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
            age = time.strftime("%Y-%m-%d %H:%M", time.localtime((folder / "manifest.json").stat().st_mtime))
            print(f"{folder.name:<20}{age:>18}{run['seconds']:>10,.1f} s{size:>16,} bytes")
        elif folder.is_dir():
            print(f"{name:<20}{'not ours':>18}  {folder}")
        elif not name.startswith("vectors-") or name.removeprefix("vectors-") in project.config.vectors:
            print(f"{name:<20}{'not built':>18}")
    print(f"\nBring it up to date: luthier run {path}   Look closer: luthier show {project.built('corpus')}")


# ---------------------------------------------------------------- files


def _file(path: Path, wish: Wish) -> None:
    if path.name in (
        "manifest.json",
        "config.json",
        "adapter_config.json",
        "model.safetensors",
        "results.json",
        "index.sqlite",
        "luthier.toml",
    ):
        _folder(path.parent, wish)
    elif path.name == "tokenizer.json" or path.suffix in (".model", ".tiktoken"):
        _tokenizer(path, wish)
    elif path.name in ("documents.jsonl", "rejected.jsonl") and _stage(path.parent) == "collect":
        _corpus(path.parent, wish)
    elif path.suffix.lower() == ".jsonl":
        _rows(path)
    else:
        raise InputError(
            f"{path} is a file of {counted(path.stat().st_size, 'byte')}, and nothing that luthier made\n"
            "Text is read by train-tokenizer, encode and train-vectors; a document becomes part of a corpus by "
            f"`luthier collect`. What can be shown: {VIEWED}."
        )


def _rows(path: Path) -> None:
    """A JSON-lines file by the keys of its first row."""
    first: dict[str, Any] | None = next(iter(read_jsonl(path)), None)
    if first is None and path.name != "questions.jsonl":
        raise InputError(f"{path} is empty: it has no line of JSON")
    first = first or {}
    if "loss" in first:
        from luthier.core.show.curve import show_losses

        show_losses(path)
    elif {"messages", "conversations", "instruction", "prompt"} & first.keys():
        _conversations(path)
    elif path.name == "questions.jsonl" or ("question" in first and first.keys() <= _question_fields()):
        from luthier.core.show.corpus import show_questions

        show_questions(path)
    else:
        count = sum(1 for _ in read_jsonl(path))
        keys = f"the keys {', '.join(first)}" if first else "no keys"
        print(f"{path}: {counted(count, 'line')} of JSON with {keys}\nThe first one:")
        print(json.dumps(first, ensure_ascii=False, indent=2)[:2000])


def _question_fields() -> set[str]:
    from dataclasses import fields

    from luthier.core.data.questions import Question

    return {f.name for f in fields(Question)}


def _conversations(path: Path) -> None:
    from luthier.core.data.conversations import pieces, read_conversations

    found = read_conversations(path)
    print(f"{path}: {counted(len(found), 'conversation')}. The first, with what is trained between ⟦ and ⟧:\n")
    print("".join(f"⟦{text}⟧" if trained else text for text, trained in pieces(found[0].messages)))
