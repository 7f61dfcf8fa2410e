"""`bench model` on a decoder of a few thousand weights: every group, the gate, a user's own, what cannot be."""

from pathlib import Path

import pytest
import torch

from luthier.core.benchmarks import model as bench
from luthier.core.errors import ConfigError
from luthier.models.config import ModelConfig

SMALL = bench.Shape(ModelConfig(97, 32, 48, 2, 4, 2, max_position_embeddings=128), 4)
OWN = """
from luthier.models.transformer import Transformer

def mine(config, weights):
    model = Transformer(config)
    model.load_state_dict(weights)
    return model

def wrong(config, weights):
    return mine(config, {name: 1.01 * weight for name, weight in weights.items()})
"""


@pytest.fixture
def one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SHAPES", {"small": SMALL})
    monkeypatch.setattr(bench, "NEW", 6)
    monkeypatch.setattr(bench, "PROMPT", 10)


@pytest.mark.usefixtures("one_shape")
def test_all_results_are_equal_to_those_of_transformers() -> None:
    pytest.importorskip("transformers")
    rows = bench.run(only=["forward", "train", "decode"], repeats=1)
    theirs = [row for row in rows if row["peer"].startswith("transformers")]
    assert len(theirs) == 4 and all(row["equal"] and row["ratio"] > 0 for row in theirs)
    assert {row["group"] for row in rows} == {"forward", "train", "decode"}
    assert all(0 < row["share"] < 1 for row in rows if row["group"] == "train")


@pytest.mark.usefixtures("one_shape")
def test_gpt2_has_a_peer_in_transformers() -> None:
    pytest.importorskip("transformers")
    from luthier.core.benchmarks.model_peers import contenders, ours
    from luthier.models.transformer import Transformer

    model = Transformer(bench._of("gpt2", SMALL).config)
    ids, labels = bench._batch(SMALL)
    (theirs,) = contenders(model, {}).values()
    torch.testing.assert_close(theirs.loss(ids, labels), ours(model).loss(ids, labels))


@pytest.mark.usefixtures("one_shape")
def test_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    for function, equal in (("mine", True), ("wrong", False)):
        rows = bench.run(only=["forward", "train"], own=f"{tmp_path / 'own.py'}:{function}", repeats=1)
        assert [row["equal"] for row in rows if row["peer"].startswith(function)] == [equal, equal]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"only": ["trian"]}, ["trian", "train"]),
        ({"peer": ["nanogpt=/nowhere/model.py"]}, ["nanogpt=/nowhere", "model.py"]),
        ({"peer": ["torchtune=."]}, ["torchtune", "litgpt"]),
        ({"own": "/nowhere/own.py:f"}, ["/nowhere/own.py"]),
    ],
)
def test_what_cannot_be_is_named(given: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        bench.run(**given)
    assert all(word in str(error.value) for word in words)
