"""What vectors are raced against: gensim, and programs that are called: word2vec.c, fastText, Stanford's GloVe."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from luthier.core.errors import ConfigError

__all__ = ["BINARIES", "NEGATIVE", "SIZE", "WINDOW", "binary", "call", "find_binaries", "gensim", "less", "seconds"]
__all__ += ["gensim_version", "glove_count", "glove_fit"]

BINARIES = ("word2vec", "fasttext", "glove")
SIZE, WINDOW, NEGATIVE = 100, 5, 5


def find_binaries(peer: Sequence[str]) -> dict[str, Path]:
    """NAME=PATH as name → path. Raises ConfigError for a name that is none, or a path that is not there."""
    paths = {}
    for one in peer:
        name, _, path = one.partition("=")
        if name not in BINARIES or not Path(path).exists() or not path:
            raise ConfigError(f"--peer {one}: expected NAME=PATH with a path that is there, NAME {', '.join(BINARIES)}")
        paths[name] = Path(path)
    return paths


def gensim(sentences: list[list[str]], threads: int, sg: bool = True, seed: int = 0) -> Any:
    """A gensim model that knows the words and has learned nothing, or None where gensim is not installed."""
    try:
        from gensim.models import Word2Vec
    except ImportError:
        return None
    model = Word2Vec(
        vector_size=SIZE, window=WINDOW, negative=NEGATIVE, sg=int(sg), min_count=1, workers=threads, seed=seed + 1
    )
    model.build_vocab(sentences)
    return model


def gensim_version() -> str:
    return f"gensim {metadata.version('gensim')}"


def binary(
    name: str, path: Path, corpus: Path, sg: bool, threads: int, max_n: int = 0, more: Sequence[Any] = ()
) -> Callable[[int], Any]:
    """A function that runs a program for so many passes; `more` are flags for fastText. word2vec.c is given the text so
    many times: one of its versions in use forgets to look past the end of the file again and makes one pass whatever
    `-iter` says."""
    out = corpus.with_name(f"{name}.out")
    if name == "word2vec":
        given = ["-size", SIZE, "-window", WINDOW, "-negative", NEGATIVE, "-hs", 0, "-sample", "1e-3", "-iter", 1]
        given += ["-threads", threads, "-min-count", 1, "-cbow", int(not sg), "-binary", 1, "-output", out]
        return lambda n: call([path, "-train", _times(corpus, n), *given])
    given = ["-output", out, "-dim", SIZE, "-ws", WINDOW, "-neg", NEGATIVE, "-t", "1e-3", "-thread", threads]
    given += ["-minCount", 1, "-minn", 3 if max_n else 0, "-maxn", max_n, "-bucket", 2_000_000 if max_n else 1, *more]
    return lambda n: call([path, "skipgram" if sg else "cbow", "-input", corpus, *given, "-epoch", n])


def glove_count(build: Path, corpus: Path, window: int) -> Callable[[], str]:
    """A function that counts a text's pairs by Stanford's program, into a file beside it."""
    vocabulary = corpus.with_name("glove.vocab")
    call([build / "vocab_count", "-min-count", 1, "-verbose", 0], corpus, vocabulary)
    cooccur = [build / "cooccur", "-vocab-file", vocabulary, "-window-size", window, "-verbose", 0]
    return lambda: call([*cooccur, "-overflow-file", corpus.with_name("overflow")], corpus, corpus.with_name("pairs"))


def glove_fit(build: Path, corpus: Path, x_max: float, seed: int) -> Callable[[int], float]:
    """A function that trains on the pairs of `glove_count`, shuffled, for so many iterations on one thread: the cost of
    the last. Vectors in glove.out.txt beside the text. A `seed` of 0 would be the clock."""
    mixed, temp = corpus.with_name("mixed"), corpus.with_name("shuffle")
    call(
        [build / "shuffle", "-verbose", 0, "-seed", seed, "-temp-file", temp],
        corpus.with_name("pairs"),
        mixed,
    )
    fit = [build / "glove", "-input-file", mixed, "-vocab-file", corpus.with_name("glove.vocab"), "-threads", 1]
    fit += ["-save-file", corpus.with_name("glove.out"), "-gradsq-file", corpus.with_name("squares"), "-seed", seed]
    fit += ["-x-max", x_max, "-vector-size", SIZE, "-verbose", 1]
    return lambda n: float(call([*fit, "-iter", n]).rpartition("cost: ")[2].split()[0])


def _times(corpus: Path, n: int) -> Path:
    path = corpus.with_suffix(f".{n}")
    if not path.exists():
        path.write_bytes(corpus.read_bytes() * n)
    return path


def call(command: Sequence[Any], stdin: Path | None = None, stdout: Path | None = None) -> str:
    """Run a program; what it says on stderr. Raises ConfigError with its last words if it fails."""
    with (stdin or Path(os.devnull)).open("rb") as given, (stdout or Path(os.devnull)).open("wb") as taken:
        done = subprocess.run([str(part) for part in command], stdin=given, stdout=taken, stderr=subprocess.PIPE)
    said = done.stderr.decode(errors="replace")
    if done.returncode:
        raise ConfigError(f"{command[0]} failed with {done.returncode}: {said.strip()[-200:]}")
    return said


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def less(passes: Callable[[int], Any]) -> float:
    """Seconds of one pass: two less one."""
    one, two = seconds(lambda: passes(1)), seconds(lambda: passes(2))
    return max(two - one, 1e-3)
