"""A small workshop for every test of the assistant: a corpus with stable and volatile documents, pairs, an index."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.core.artifacts import Artifact, write_jsonl
from luthier.core.assistant.index import build_index
from luthier.core.data.corpus import Document, Source, Span
from luthier.core.data.questions import Question

PRICES = """\
| Job | Price | Time |
| --- | --- | --- |
| Fret levelling | CHF 180 | 3 days |
| Neck reset | CHF 640 |  |
| Repair of a bridge | CHF 90 | 2 days |"""
DOCUMENTS = {
    "care.md": (
        "stable",
        "en",
        "Care guide",
        [
            ("heading", "# Care guide", 0),
            ("heading", "## Humidity", 0),
            ("paragraph", "Keep the humidity between 45 and 55 percent. It falls in winter. Dry air cracks spruce.", 0),
            ("heading", "## Cleaning", 0),
            ("list", "- Wipe the strings after playing.\n- Never use alcohol on French polish.", 0),
        ],
    ),
    "prices.csv": (
        "stable",
        "en",
        "Prices",
        [
            (
                "table",
                PRICES,
                0,
            )
        ],
    ),
    "handbook.pdf": (
        "stable",
        "en",
        "Handbook",
        [
            ("paragraph", "Visitors wear safety glasses in the machine room.", 1),
            ("paragraph", "The founder of the workshop is Ottilie Corvane.", 2),
        ],
    ),
    "pflege.md": (
        "stable",
        "de",
        "Pflege",
        [("paragraph", "Die Saiten wechseln wir jedes halbe Jahr. Der Bogen wird nach dem Spielen entspannt.", 0)],
    ),
    "news/week.md": (
        "volatile",
        "en",
        "This week",
        [
            ("paragraph", "We are open this week:", 0),
            ("list", "- Tuesday from 10:00 to 18:00\n- Saturday from 9:00 to 12:00", 0),
            ("paragraph", "Teo Brandl is on holiday until Thursday.", 0),
        ],
    ),
}


def make_document(path: str) -> Document:
    kind, language, title, blocks = DOCUMENTS[path]
    text, spans = "", []
    for block, body, page in blocks:
        start = len(text) + 2 if text else 0
        text = f"{text}\n\n{body}" if text else body
        spans.append(Span(start, len(text), page, block))
    source = Source(path, "0" * 64, "text/plain")
    return Document(path, text, source, spans, kind=kind, language=language, title=title)  # type: ignore[arg-type]


def make_corpus(folder: Path, questions: list[Question]) -> Path:
    with Artifact(folder, "collect", {}, {}, documents=[{"path": p, "sha256": "0" * 64} for p in DOCUMENTS]) as work:
        write_jsonl(work.folder / "documents.jsonl", (make_document(path).to_row() for path in DOCUMENTS))
        write_jsonl(work.folder / "rejected.jsonl", [])
    write_jsonl(folder / "questions.jsonl", (q.to_row() for q in questions))
    return folder


@pytest.fixture
def questions() -> list[Question]:
    rows = {
        "Who started the firm?": ("Ottilie Corvane founded the workshop.", "stable", "train"),
        "Which zither is oldest?": ("The oldest zither is from 1820.", "stable", "validation"),
        "Is the kazoo on sale?": ("The kazoo is on sale today.", "volatile", "train"),
    }
    return [
        Question(
            str(n), question, answer, ["Name the boss of it all."], ["Whose idea was this enterprise?"], kind=k, split=s
        )
        for n, (question, (answer, k, s)) in enumerate(rows.items())
    ]


@pytest.fixture
def corpus(tmp_path: Path, questions: list[Question]) -> Path:
    return make_corpus(tmp_path / "corpus", questions)


@pytest.fixture
def index(tmp_path: Path, corpus: Path) -> Path:
    build_index(corpus, tmp_path / "index")
    return tmp_path / "index"


TAUGHT = {
    "Who sings in the shop?": "The canary Pia sings.",
    "Where is the big kettle?": "Under the old stairs.",
    "Was trinkt der Meister?": "Nur grünen Tee.",
}


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: a decoder of two layers that was taught the answers of TAUGHT in sixty steps."""
    import torch

    from luthier.core.data.conversations import Message, encode_conversation
    from luthier.models.checkpoints import save_model
    from luthier.models.config import ModelConfig
    from luthier.models.transformer import Transformer
    from luthier.tokenizers.bpe_train import train_bpe
    from luthier.tokenizers.formats import save_tokenizer

    folder = tmp_path_factory.mktemp("model")
    texts = [f"{question} {answer}" for question, answer in TAUGHT.items()]
    tokenizer = train_bpe(texts, 290, min_frequency=1)
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    network = Transformer(config, seed=0)
    rows = [encode_conversation(tokenizer, [Message("user", q), Message("assistant", a)]) for q, a in TAUGHT.items()]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        for ids, trained in rows:
            labels = torch.tensor(ids[1:]).long().where(torch.tensor(trained[1:]), -100)
            loss, count = network.loss(torch.tensor(ids[:-1]).long()[None], labels[None])
            (loss / count).backward()
        optimizer.step()
    save_model(network, folder)
    save_tokenizer(tokenizer, folder)
    return folder
