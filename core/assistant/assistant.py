"""The assistant: the model's weights and the index behind one question.

    mode        answer                                                    path
    tuned       the model's, where it is sure enough                      model, else none
    retrieved   the best sentence of the index above `min_score`, quoted  retrieval, else none
    both        quoted above `min_score`, else the model's                retrieval, model, or none

"Sure enough" is the geometric mean of the probabilities that the model gave the T tokens it chose,

    confidence = exp(1/T Σ_t log p(token_t | before))        in (0, 1]

high for what it was trained on, low where it improvises. Greedy decoding, because one right answer is wanted and the
same question must get the same answer. A model of a few million parameters cannot read a passage, so the index answers
by quoting, word for word, with file and page.
"""

from __future__ import annotations

import codecs
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.errors import ConfigError, InputError

if TYPE_CHECKING:
    from luthier.core.assistant.index import Hit, Index

__all__ = ["MODES", "Answer", "Assistant", "AssistantConfig", "Sampling", "Source", "not_found"]

MODES = ("tuned", "retrieved", "both")
NOT_FOUND = {"en": "Not found in the documents.", "de": "In den Dokumenten nicht gefunden."}


@dataclass(frozen=True)
class AssistantConfig:
    """How the assistant decides: the table [assistant] of luthier.toml."""

    min_score: float = 0.45
    """Score from which a sentence is quoted, 0 to 1: the share of the question's information that it covers."""
    min_confidence: float = 0.8
    """Mean probability of its tokens from which the model's answer is given, 0 to 1; 0 gives every answer."""
    max_new_tokens: int = 80
    """Longest answer of the model, in tokens."""
    turns: int = 1
    """Exchanges of a conversation that the model sees, the question included; 0 is all of it, system message too. A
    model tuned on single questions answers best with 1."""
    batch_size: int = 32
    """Questions answered by the model at a time."""

    def __post_init__(self) -> None:
        for name in ("min_score", "min_confidence"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected a share from 0 to 1")
        for name, least in (("max_new_tokens", 1), ("turns", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} = {getattr(self, name)}: expected {least} or more")


@dataclass(frozen=True)
class Source:
    """Where a quotation stands: `start` and `end` count code points of the document's text in the corpus."""

    path: str
    page: int
    start: int
    end: int
    sentence: str
    kind: str = "stable"

    def __str__(self) -> str:
        return f"{self.path}, page {self.page}" if self.page else self.path


@dataclass(frozen=True)
class Answer:
    """An answer, the path that gave it, and how sure that path is: the quotation's score or the model's confidence."""

    text: str
    path: Literal["model", "retrieval", "none"]
    source: Source | None = None
    score: float = 0.0
    finish: Literal["stop", "length"] = "stop"


@dataclass(frozen=True)
class Sampling:
    """How the model chooses tokens; the defaults are greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int | None = None
    seed: int = 0


class Assistant:
    """A tuned model, an index, or both; opened when first needed, safe to use from several threads."""

    def __init__(self, model: Path | None, index: Path | None = None, config: AssistantConfig | None = None) -> None:
        if model is None and index is None:
            raise InputError("an assistant needs a model folder, an index folder, or both")
        self.config = config or AssistantConfig()
        self.model_folder = Path(model) if model is not None else None
        self.index_folder = Path(index) if index is not None else None
        self._lock = threading.RLock()  # for opening the parts
        self._turn = threading.Lock()  # one generation at a time: more would share the same cores
        self._index: Index | None = None
        self._index_state: object = None
        self._parts: tuple[Any, Any, tuple[int, ...]] | None = None

    @property
    def default_mode(self) -> str:
        """The richest mode that the parts allow."""
        if self.index_folder is None:
            return "tuned"
        return "both" if self.model_folder is not None else "retrieved"

    def answers(self, questions: Sequence[str], mode: str | None = None) -> list[Answer]:
        """One answer a question, in order; the model answers in batches. Raises InputError for a mode whose part is
        missing."""
        mode = self.checked_mode(mode)
        found: list[Answer | None] = [None] * len(questions)
        if mode != "tuned":
            found = [self._quote(question) for question in questions]
        open_ones = [n for n, answer in enumerate(found) if answer is None]
        if mode != "retrieved" and open_ones:
            prompts = [[{"role": "user", "content": questions[n]}] for n in open_ones]
            for n, answer in zip(open_ones, self._generate(prompts, Sampling()), strict=True):
                found[n] = self._sure(answer)
        return [answer or not_found(question) for question, answer in zip(questions, found, strict=True)]

    def reply(
        self, messages: Sequence[Mapping[str, str]], mode: str | None = None, sampling: Sampling | None = None
    ) -> Answer:
        """The answer to the last user message of a conversation."""
        *_, last = self.stream(messages, mode, sampling)
        assert isinstance(last, Answer)
        return last

    def stream(
        self, messages: Sequence[Mapping[str, str]], mode: str | None = None, sampling: Sampling | None = None
    ) -> Iterator[str | Answer]:
        """Pieces of the answer's text as they come, then the whole Answer.

        With `min_confidence` above 0 the model's first words come when its last is known: what is not given must not
        have been said.
        """
        mode, question = self.checked_mode(mode), last_question(messages)
        answer = self._quote(question) if mode != "tuned" else None
        if answer is None and mode != "retrieved":
            sampling = sampling or Sampling()
            if self.config.min_confidence == 0:
                yield from self._live(messages, sampling)
                return
            answer = self._sure(self._generate([messages], sampling)[0])
        answer = answer or not_found(question)
        yield from _pieces(answer.text)
        yield answer

    def warm_up(self) -> None:
        """Open model and index now, so that a wrong folder is refused at once and the first answer comes quickly."""
        if self.index_folder is not None:
            self._open_index()
        if self.model_folder is not None:
            self._model()

    def count_tokens(self, text: str) -> int:
        """Tokens of the model's tokenizer; words where there is no model."""
        if self.model_folder is None:
            return len(text.split())
        return self._model()[1].count(text)

    def search(self, question: str, most: int = 5) -> list[Hit]:
        """The best chunks of the index for a question; empty without an index."""
        return self._open_index().search(question, most) if self.index_folder is not None else []

    # ---------------------------------------------------------------- retrieval

    def _quote(self, question: str) -> Answer | None:
        hits = self.search(question, most=1)
        if not hits or hits[0].score < self.config.min_score:
            return None
        c = hits[0].chunk
        return Answer(c.text, "retrieval", Source(c.path, c.page, c.start, c.end, c.text, c.kind), hits[0].score)

    def _open_index(self) -> Index:
        """The index; opened anew when another one has taken its place, as `luthier run --watch` does."""
        from luthier.core.assistant.index import open_index

        assert self.index_folder is not None
        with self._lock:
            manifest = self.index_folder / "manifest.json"
            state = (manifest.stat().st_mtime_ns, manifest.stat().st_ino) if manifest.exists() else None
            if self._index is None or (state is not None and state != self._index_state):
                self._index, self._index_state = open_index(self.index_folder), state
            return self._index

    # ---------------------------------------------------------------- the model

    def _model(self) -> tuple[Any, Any, tuple[int, ...]]:
        """Model, tokenizer and the ids that end an answer."""
        from luthier.core.data.conversations import stop_ids
        from luthier.models.adapter_files import open_model
        from luthier.tokenizers.formats import load_tokenizer

        assert self.model_folder is not None
        with self._lock:
            if self._parts is None:
                tokenizer = load_tokenizer(self.model_folder)
                self._parts = open_model(self.model_folder), tokenizer, tuple(stop_ids(tokenizer))
            return self._parts

    def _prompt(self, messages: Sequence[Mapping[str, str]], most: int) -> list[int]:
        """The ids of a conversation up to the assistant's turn; the oldest ids go where it is longer than `most`."""
        from luthier.core.data.conversations import Message, encode_prompt

        seen = [Message(m["role"], m["content"]) for m in recent(messages, self.config.turns)]
        return [int(i) for i in encode_prompt(self._model()[1], seen)][-most:]

    def _room(self, sampling: Sampling) -> tuple[int, int]:
        """Tokens for the prompt and for the answer within the model's context."""
        context = self._model()[0].config.max_position_embeddings
        answer = min(sampling.max_new_tokens or self.config.max_new_tokens, context - 1)
        return context - answer, answer

    def _generate(self, conversations: Sequence[Sequence[Mapping[str, str]]], sampling: Sampling) -> list[Answer]:
        import torch

        from luthier.models.generate import generate

        model, tokenizer, stops = self._model()
        room, most = self._room(sampling)
        with self._turn:
            made = generate(
                model,
                [self._prompt(messages, room) for messages in conversations],
                max_new_tokens=most,
                stop_ids=stops,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                generator=torch.Generator().manual_seed(sampling.seed),
                vocab_size=tokenizer.vocab_size,
                batch_size=self.config.batch_size,
            )
        return [
            Answer(
                tokenizer.decode(g.ids).strip(),
                "model",
                None,
                confidence(g.logprobs),
                "stop" if g.stopped else "length",
            )
            for g in made
        ]

    def _sure(self, answer: Answer) -> Answer | None:
        return answer if answer.text and answer.score >= self.config.min_confidence else None

    def _live(self, messages: Sequence[Mapping[str, str]], sampling: Sampling) -> Iterator[str | Answer]:
        """The model's answer token by token."""
        import torch

        from luthier.models.generate import stream

        model, tokenizer, stops = self._model()
        room, most = self._room(sampling)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text, count = "", 0
        ids = stream(
            model,
            self._prompt(messages, room),
            max_new_tokens=most,
            stop_ids=stops,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            generator=torch.Generator().manual_seed(sampling.seed),
            vocab_size=tokenizer.vocab_size,
        )
        with self._turn:
            for token in ids:
                count += 1
                piece = decoder.decode(tokenizer.decode_bytes([token]))
                text += piece
                if piece:
                    yield piece
        rest = decoder.decode(b"", final=True)
        if rest:
            yield rest
        yield Answer((text + rest).strip(), "model", None, 1.0, "stop" if count < most else "length")

    def checked_mode(self, mode: str | None) -> str:
        mode = mode or self.default_mode
        if mode not in MODES:
            raise InputError(f"mode '{mode}': expected one of {', '.join(MODES)}")
        if mode != "retrieved" and self.model_folder is None:
            raise InputError(f"mode '{mode}' needs a model, and none was given")
        if mode != "tuned" and self.index_folder is None:
            raise InputError(f"mode '{mode}' needs an index, and none was given")
        return mode


# ---------------------------------------------------------------- small pieces


def confidence(logprobs: Sequence[float]) -> float:
    """The geometric mean of probabilities given as logarithms; 0 for none."""
    return math.exp(sum(logprobs) / len(logprobs)) if logprobs else 0.0


def _pieces(text: str) -> Iterator[str]:
    """A finished text word by word, white space kept."""
    words = text.split(" ")
    yield from (word if n == 0 else f" {word}" for n, word in enumerate(words))


def last_question(messages: Sequence[Mapping[str, str]]) -> str:
    """The content of the last user message. Raises InputError if there is none."""
    for message in reversed(messages):
        if message["role"] == "user":
            return message["content"]
    raise InputError("the conversation holds no message of role 'user'")


def recent(messages: Sequence[Mapping[str, str]], turns: int) -> list[Mapping[str, str]]:
    """The last `turns` exchanges, from their user message on; all messages for 0."""
    starts = [n for n, message in enumerate(messages) if message["role"] == "user"]
    return list(messages[starts[-min(turns, len(starts))] :] if turns and starts else messages)


def not_found(question: str) -> Answer:
    """The honest answer, in the question's language."""
    return Answer(NOT_FOUND["de" if _is_german(question) else "en"], "none")


def _is_german(text: str) -> bool:
    """Whether German function words outnumber English ones; a short question is too little for a language model."""
    import re

    from luthier.core.data.sentences import ENGLISH_STOP_WORDS, GERMAN_STOP_WORDS

    words = re.findall(r"[^\W\d_]+", text.lower())
    german, english = set(GERMAN_STOP_WORDS.split()), set(ENGLISH_STOP_WORDS.split())
    ours = sum(w in german and w not in english for w in words) + sum(any(c in "äöüß" for c in w) for w in words)
    return ours > sum(w in english and w not in german for w in words)
