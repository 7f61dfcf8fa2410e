"""The settings of `train-vectors`, of both methods."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal

from luthier.core.data.texts import COLUMN
from luthier.core.errors import ConfigError

__all__ = ["VectorsConfig"]


@dataclass(frozen=True)
class VectorsConfig:
    """How vectors are trained; names as in gensim (word2vec) and in the paper (GloVe)."""

    method: Literal["word2vec", "glove"] = "word2vec"
    """word2vec: skip-gram with negative sampling, Mikolov et al. 2013. glove: Pennington et al. 2014."""
    vector_size: int = 100
    """Numbers in a vector."""
    window: int = 5
    """Words on either side that count as near; never across the end of a document."""
    min_count: int = 5
    """Tokens that occur less often have no vector."""
    epochs: int = 5
    """word2vec: passes over the text."""
    sg: bool = True
    """word2vec: skip-gram; with no-sg CBOW, which is faster and knows rare words less well."""
    cbow_mean: bool = True
    """word2vec: CBOW takes the mean of the neighbours; with no-cbow-mean their sum."""
    negative: int = 5
    """word2vec: noise words drawn for each word (5 to 20; Mikolov et al. 2013b, section 2.2); 0: none, give hs."""
    hs: bool = False
    """word2vec: hierarchical softmax, the words as leaves of a Huffman tree; together with `negative` or alone."""
    shared_noise: int = 1
    """word2vec: words of the text that share their noise words (Ji et al. 2016); 0: each pair has its own, a third of
    the speed."""
    sample: float = 1e-3
    """word2vec: share of the text above which a word is thinned out; 0: none is."""
    alpha: float = 0.025
    """word2vec: learning rate at the start."""
    min_alpha: float = 1e-4
    """word2vec: learning rate at the end, reached in a straight line."""
    ns_exponent: float = 0.75
    """word2vec: noise is drawn in proportion to count to this power; 0: evenly, 1: by count."""
    max_n: int = 0
    """word2vec: characters of the longest n-grams that words are made of, so that unseen words have vectors (fastText:
    6; Bojanowski et al. 2017); 0: words are whole."""
    min_n: int = 3
    """word2vec: characters of the shortest n-grams."""
    bucket: int = 2_000_000
    """word2vec: rows that n-grams are hashed into; each takes 4 bytes times vector_size."""
    phrases: int = 0
    """Passes that join words which stand together unusually often, as in new_york: 1 finds pairs, 2 up to four words
    (Mikolov et al. 2013b, section 4). Texts only."""
    phrase_threshold: float = 100.0
    """How many times more often than by chance a pair must occur to be joined."""
    iterations: int = 15
    """glove: passes over the counted pairs."""
    x_max: float = 10.0
    """glove: count from which a pair has full weight; the paper's 100 is for billions of words."""
    x_exponent: float = 0.75
    """glove: the paper's alpha, the power by which the weight of rarer pairs falls."""
    eta: float = 0.05
    """glove: AdaGrad's learning rate."""
    symmetric: bool = True
    """glove: count neighbours on both sides; with no-symmetric only those before a word (the paper's section 4.2)."""
    max_memory: float = 2.0
    """glove: GB that counting may take; a text that needs more is counted in parts, merged on disk. Any value gives the
    same counts."""
    workers: int = 1
    """Threads; 0: one a core. One gives the same bits every time; several share the table without a lock (HOGWILD),
    which is faster, but no two runs are alike."""
    deterministic: bool = False
    """The same bits whatever `workers` says, because one thread trains: about half the speed of two."""
    column: str = COLUMN
    """Field of JSON lines, or column of a Parquet table, that holds the text."""
    seed: int = 0
    """Starts the stream of chance: first vectors, noise, order."""

    def __post_init__(self) -> None:
        whole = ("vector_size", "window", "min_count", "epochs", "iterations", "min_n", "bucket")
        zero = ("workers", "sample", "min_alpha", "negative", "shared_noise", "max_n", "phrases", "seed")
        for name, lowest in {**dict.fromkeys(whole, 1), **dict.fromkeys(zero, 0)}.items():
            if not getattr(self, name) >= lowest:  # nor a number that is none
                raise ConfigError(f"{name} = {getattr(self, name)}: expected at least {lowest}")
        for name in ("alpha", "x_max", "eta", "max_memory"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected more than 0")
        if not isfinite(self.ns_exponent):
            raise ConfigError(f"ns_exponent = {self.ns_exponent}: expected a number, 0 for evenly, 1 for by count")
        if 0 < self.max_n < self.min_n:
            raise ConfigError(f"max_n = {self.max_n} is less than min_n = {self.min_n}: there are no such n-grams")
        if self.method == "word2vec" and not (self.negative or self.hs):
            raise ConfigError("negative = 0 and hs = false: nothing to learn from\nGive --negative 5, or --hs.")
