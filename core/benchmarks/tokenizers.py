"""Our tokenizers beside the others: first the same ids, then timed in turn.

    encode      a whole text, warm: its pieces were met before, as in a long run. Arrays against arrays, lists against
                lists: making a list of numbers takes longer than finding them
    cold        the first pass over a text of a tokenizer that was just loaded, everything compiled; beside it loading,
                and loading together with the first pass, so that nothing that was made ready at loading is hidden
    threads     documents of 4,000 characters on 1, 2, 4, … threads, each tool with the output it makes fastest
    short       strings of 100 B, 1 kB and 10 kB whose pieces were met before: the cost of a call
    decode      ids to text, from an array and from a list
    count       how many ids, without having them
    first       a fresh process: import, load, first ids; our compiled code on disk, and not
    train       the same text, pattern and number of ids; equal: the same merges in the same order, or what the row's
                `check` says of a tool that breaks ties or splits otherwise. Beside it the memory each takes
    unigram     unigram training beside sentencepiece's; equal: the text's likelihood within 0.5%

Slow tools are given the first million characters of a text and their rate is of those. A tool that is not installed, or
that cannot read the vocabulary, has no column.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from luthier.core.benchmarks.texts import Kind, documents, kinds
from luthier.core.benchmarks.timing import Row, Tool, in_child, race, thread_counts
from luthier.core.benchmarks.tokenizer_peers import (
    FOLDER,
    PEERS,
    RANKS,
    Peer,
    Vocabulary,
    expression,
    flat,
    hugging_face_json,
    peers,
    vocabulary,
)
from luthier.core.benchmarks.tokenizer_training import train, unigram
from luthier.core.console import say
from luthier.core.errors import ConfigError, did_you_mean

__all__ = ["GROUPS", "run"]

DEFAULT_SIZE = 8000  # ids of the vocabulary that is trained where none is given
SHORT = {"100 B": 100, "1 kB": 1000, "10 kB": 10_000}
SHORT_BYTES = 100_000  # of the text, cut into short strings
IDS = "the same ids"
# Strings that encoders get wrong: only a user's own is asked for them.
STRANGE = (
    "",
    " ",
    "\n",
    "\r\n\r\n  x",
    "a" * 1000,
    " " * 70 + "x" + " " * 70,
    "\t \t\n \n",
    "I'm we'LL 'ſ it’s 'RE 'd",
    "12345678 ١٢٣ ½ Ⅻ 3.14e-5",
    "naïve 東京 ไทย हिन्दी 한국어 é e\u0301 \u200d👩\u200d👩\u200d👧",
    "\x00\x7f\x80\u0085\u00a0\u1680\u2028\u3000\ufeff\U0010ffff",
    "<|endoftext|> camelCaseHTTPServer ÀÉ aǅb",
)


class Case(NamedTuple):
    """What the cases of a vocabulary share: the tools, loaded once, and the texts."""

    vocabulary: Vocabulary
    kinds: Sequence[Kind]
    peers: Mapping[str, Peer]
    loaded: Mapping[str, Any]
    repeats: int
    own: str | None

    def label(self, kind: Kind) -> str:
        return f"{self.vocabulary.name}, {kind.name}, {kind.megabytes:.1f} MB"


def run(
    *,
    texts: Sequence[Path] = (),
    vocabs: Sequence[Path] = (),
    repeats: int = 5,
    only: Sequence[str] = (),
    own: str | None = None,
) -> list[Row]:
    """All rows. `texts`: files, each a kind of text; `vocabs`: vocabularies to encode with, by default one that is
    trained on the texts; `only` some of GROUPS; `own` a user's encoder (see tokenizer_peers.users)."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    wanted = list(only) or list(GROUPS)
    for name in wanted:
        if name not in GROUPS:
            raise ConfigError(
                f"--only {name}: no such group{did_you_mean(name, GROUPS)} (there are {', '.join(GROUPS)})"
            )
    read = kinds(texts)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as folder:
        if any(name in wanted for name in OF_A_VOCABULARY):
            for one in [vocabulary(file) for file in vocabs] or [_trained(read, Path(folder))]:
                case = _case(one, read, repeats, own)
                for name in (name for name in wanted if name in OF_A_VOCABULARY):
                    say(f"{name}, {one.name}")
                    rows += OF_A_VOCABULARY[name](case)
    for name in (name for name in wanted if name in TRAINING):
        for kind in read:
            say(f"{name}, {kind.name}")
            rows += TRAINING[name](kind, repeats)
    return rows


def _trained(read: Sequence[Kind], folder: Path) -> Vocabulary:
    from luthier.tokenizers.bpe_train import train_bpe
    from luthier.tokenizers.formats import save_tokenizer

    say(f"training a vocabulary of {DEFAULT_SIZE:,} ids to encode with")
    save_tokenizer(train_bpe([kind.text for kind in read], DEFAULT_SIZE), folder)
    return Vocabulary("trained", folder, FOLDER)


def _case(one: Vocabulary, read: Sequence[Kind], repeats: int, own: str | None) -> Case:
    tools = peers(one, own)
    say(f"{one.name}: {', '.join(tools)}")
    return Case(one, read, tools, {name: peer.load() for name, peer in tools.items()}, repeats, own)


# ---------------------------------------------------------------- encoding


def _encode(case: Case) -> list[Row]:
    rows = []
    for output in ("arrays", "lists"):
        for kind in case.kinds:
            tools = _tools(case, kind, output)
            group = f"encode, warm, to {output}"
            rows += race(case.label(kind), "MB/s", tools, case.repeats, group=group, check=IDS)
    return rows


def _tools(case: Case, kind: Kind, output: str) -> dict[str, Tool]:
    """Everyone who has this `output` (a field of Peer), on the whole of the text or as much as a slow one is given."""
    right = _Right(case, kind)
    tools = {}
    for name, peer in case.peers.items():
        call, part = getattr(peer, output), kind.first(peer.most)
        if call is None:
            continue

        def encode(call: Any = call, given: Any = case.loaded[name], text: str = part.text) -> Any:
            return call(given, text)

        tools[name] = Tool(encode, part.megabytes, right.check(peer, part))
    return tools


class _Right:
    """Our ids of a text, or of its first part, made once."""

    def __init__(self, case: Case, kind: Kind) -> None:
        self._tokenizer, self._case, self._ids = case.loaded["ours"], case, {}

    def check(self, peer: Peer, part: Kind) -> Callable[[Any], bool]:
        if len(part.text) not in self._ids:
            self._ids[len(part.text)] = flat(self._tokenizer.encode_ordinary(part.text))
        ids = self._ids[len(part.text)]
        return lambda found: np.array_equal(flat(found), ids) and (not peer.strict or self._strange(peer))

    def _strange(self, peer: Peer) -> bool:
        own = self._case.loaded[peer.name]
        return all(
            peer.lists is not None and peer.lists(own, text) == self._tokenizer.encode_ordinary(text).tolist()
            for text in STRANGE
        )


def _cold(case: Case) -> list[Row]:
    rows = []
    who = {name: peer for name, peer in case.peers.items() if peer.arrays}
    for kind in case.kinds:
        tools = {
            name: tool._replace(call=_arrays_of(case.peers[name], kind.text), prepare=_just_loaded(case, name))
            for name, tool in _tools(case, kind, "arrays").items()
        }
        rows += race(case.label(kind), "MB/s", tools, case.repeats, group="encode, cold, to arrays", check=IDS)
    loading = {name: Tool(peer.load) for name, peer in case.peers.items() if peer.loads}
    rows += race(f"{case.vocabulary.name}, ours from its cache", "ms", loading, case.repeats, group="load")
    with _no_cache():
        rows += race(f"{case.vocabulary.name}, from the files", "ms", loading, case.repeats, group="load")
    first = {name: Tool(_load_and_encode(peer, case.kinds[0].text)) for name, peer in who.items() if peer.loads}
    group = "load and first pass, to arrays"
    return rows + race(case.label(case.kinds[0]), "ms", first, case.repeats, group=group)


@contextmanager
def _no_cache() -> Iterator[None]:
    """Vocabularies are read from their files."""
    before = os.environ.get("LUTHIER_CACHE")
    os.environ["LUTHIER_CACHE"] = os.devnull  # in which there can be no file
    try:
        yield
    finally:
        os.environ.pop("LUTHIER_CACHE")
        os.environ.update({} if before is None else {"LUTHIER_CACHE": before})


def _arrays_of(peer: Peer, text: str) -> Callable[[Any], Any]:
    assert peer.arrays is not None
    return lambda given, encode=peer.arrays: encode(given, text)


def _just_loaded(case: Case, name: str) -> Callable[[], Any]:
    """A tool without a cache is as cold when it was loaded long ago."""
    return case.peers[name].load if case.peers[name].cache else lambda: case.loaded[name]


def _load_and_encode(peer: Peer, text: str) -> Callable[[], Any]:
    encode = _arrays_of(peer, text)
    return lambda: encode(peer.load())


def _short(case: Case) -> list[Row]:
    rows = []
    for output in ("arrays", "lists"):
        for kind in case.kinds:
            for name, size in SHORT.items():
                strings = _strings(kind.text, size)
                tools = {
                    peer.name: _loop(getattr(peer, output), case.loaded[peer.name], strings, case.loaded["ours"])
                    for peer in case.peers.values()
                    if getattr(peer, output)
                }
                label, group = f"{case.vocabulary.name}, {kind.name}, {name}", f"short strings, to {output}"
                rows += race(label, "µs a call", tools, case.repeats, group=group, check=IDS, budget=0.5)
    return rows


def _strings(text: str, size: int) -> list[str]:
    """Strings of `size` bytes, one after the other out of the text."""
    data = text[:SHORT_BYTES].encode("utf-8")[:SHORT_BYTES]
    return [data[i : i + size].decode("utf-8", "ignore") for i in range(0, max(len(data) - size, 0) + 1, size)]


def _loop(call: Any, given: Any, strings: Sequence[str], tokenizer: Any) -> Tool:
    def every(new: Sequence[str]) -> list[Any]:
        return [call(given, text) for text in new]

    def same(found: list[Any]) -> bool:
        return all(
            np.array_equal(flat(ids), flat(tokenizer.encode_ordinary(text)))
            for ids, text in zip(found, strings, strict=True)
        )

    return Tool(every, len(strings), same, partial(_anew, strings))


def _count(case: Case) -> list[Row]:
    rows = []
    for kind in case.kinds:
        tools = {
            name: tool._replace(same=_same_number(case, kind.first(case.peers[name].most).text))
            for name, tool in _tools(case, kind, "count").items()
        }
        rows += race(case.label(kind), "MB/s", tools, case.repeats, group="count", check="the same number")
    return rows


def _same_number(case: Case, text: str) -> Callable[[Any], bool]:
    return lambda number: number == len(case.loaded["ours"].encode_ordinary(text))


# ---------------------------------------------------------------- threads


def _threads(case: Case) -> list[Row]:
    rows = []
    for threads in thread_counts():
        environment = {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false"}
        work = (case.vocabulary, case.kinds, threads, case.repeats, case.own)
        rows += in_child(_threads_here, *work, environment=environment)
    return rows


def _threads_here(one: Vocabulary, read: Sequence[Kind], threads: int, repeats: int, own: str | None) -> list[Row]:
    """In a process of its own, because the Rust packages choose their number of threads once."""
    found = peers(one, own)
    calls = {name: partial(peer.batch, peer.load()) for name, peer in found.items() if peer.batch}
    rows = []
    for kind in read:
        tools = {}
        for name, call in calls.items():
            part = kind.first(found[name].most)
            texts = documents(part.text)
            same = partial(np.array_equal, flat(calls["ours"](texts, 1)))
            tools[name] = Tool(
                lambda given, call=call: call(given, threads),
                part.megabytes,
                lambda ids, same=same: same(flat(ids)),
                partial(_anew, texts),
            )
        label = f"{one.name}, {kind.name}, {threads} thread{'s' * (threads > 1)}"
        rows += race(label, "MB/s", tools, repeats, group="encode, documents of 4,000 characters", check=IDS)
    return rows


def _anew(texts: Sequence[str]) -> list[str]:
    """The same texts as strings nobody has seen: Python keeps a string's UTF-8 once it was asked for, which would spare
    some tools the work that every document brings."""
    return [text[:1] + text[1:] for text in texts]


# ---------------------------------------------------------------- decoding


def _decode(case: Case) -> list[Row]:
    rows = []
    for source in ("arrays", "lists"):
        for kind in case.kinds:
            tools = {}
            for name, peer in case.peers.items():
                call, part = getattr(peer, f"from_{source}"), kind.first(peer.most)
                if call is None:
                    continue
                ids = case.loaded["ours"].encode_ordinary(part.text)
                text, given = case.loaded["ours"].decode(ids), ids if source == "arrays" else ids.tolist()
                tools[name] = Tool(
                    lambda call=call, given=given, name=name: call(case.loaded[name], given),
                    part.megabytes,
                    lambda found, text=text: found == text,
                )
            group = f"decode, from {source}"
            rows += race(case.label(kind), "MB/s", tools, case.repeats, group=group, check="the same text")
    return rows


# ---------------------------------------------------------------- a fresh process

FIRST = """
import json, sys
from pathlib import Path
from luthier.core.benchmarks.tokenizer_peers import Vocabulary, first_ids
package, name, file, kind, pattern = sys.argv[1:]
print(json.dumps(first_ids(package, Vocabulary(name, Path(file), kind, pattern), "The first text.")))
"""
FIRST_TEXT = "The first text."


def _first(case: Case) -> list[Row]:
    """From the start of the process until the ids are there; ours with its compiled code kept, and with none."""
    right = case.loaded["ours"].encode_ordinary(FIRST_TEXT).tolist()
    label, group = case.vocabulary.name, "first ids of a fresh process"
    with tempfile.TemporaryDirectory(prefix="luthier-bench-") as folder:
        tools = {
            name: Tool(partial(_fresh, package, one, f"{folder}/kept"), same=lambda ids: ids == right)
            for name, (package, one) in _packages(case, Path(folder)).items()
        }
        rows = race(f"{label}, compiled code kept", "s", tools, case.repeats, group=group, check=IDS, budget=6.0)
        tools["ours"] = Tool(lambda: _fresh("ours", case.vocabulary, tempfile.mkdtemp(dir=folder)), same=None)
        return rows + race(f"{label}, nothing compiled", "s", tools, 1, group=group, check=IDS, noise=False)


def _packages(case: Case, folder: Path) -> dict[str, tuple[str, Vocabulary]]:
    """Peer → its package and the file it reads. Nothing of ours is to be imported on a peer's account: Hugging Face's
    gets a tokenizer.json, tiktoken its expression; what would need our reader is left out."""
    one = case.vocabulary
    found = {name: (name.split()[0], one) for name in case.peers}
    found = {name: entry for name, entry in found.items() if entry[0] in ("ours", *PEERS)}
    for name, (package, _) in list(found.items()):
        if package == "tokenizers" and one.kind == RANKS:
            (folder / "tokenizer.json").write_text(hugging_face_json(one), encoding="utf-8")
            found[name] = (package, Vocabulary(one.name, folder, FOLDER))
        elif package == "tiktoken" and one.kind == RANKS:
            found[name] = (package, one._replace(pattern=expression(one.pattern)))
        elif package == "tiktoken":
            del found[name]
    return found


def _fresh(package: str, one: Vocabulary, cache: str) -> list[int]:
    environment = {**os.environ, "NUMBA_CACHE_DIR": cache}
    command = [sys.executable, "-c", FIRST, package, one.name, str(one.file), one.kind, one.pattern]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


OF_A_VOCABULARY: dict[str, Callable[[Case], list[Row]]] = {
    "encode": _encode,
    "cold": _cold,
    "threads": _threads,
    "short": _short,
    "decode": _decode,
    "count": _count,
    "first": _first,
}
TRAINING: dict[str, Callable[[Kind, int], list[Row]]] = {"train": train, "unigram": unigram}
GROUPS = (*OF_A_VOCABULARY, *TRAINING)
