"""DPO: the loss written out pair by pair, the same for any split and packing, and what a run makes of a small model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.core.data.conversations import Message, encode_conversation
from luthier.core.data.preferences import Preference
from luthier.core.errors import ConfigError, TrainingError
from luthier.core.training.batches import IGNORED, Example, pack, split_rows
from luthier.core.training.dpo import dpo_loss, encode_preference, pairs_in, with_reference
from luthier.core.training.finetune import FinetuneConfig, finetune
from luthier.core.training.parallel import Workers
from luthier.models.checkpoints import save_model
from luthier.models.config import preset
from luthier.models.transformer import Transformer
from luthier.tokenizers.bpe import Tokenizer
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import save_tokenizer

PAIRS = [
    Preference(
        (Message("user", f"What is part {i}?"),),
        (Message("assistant", f"It is the {'very ' * (i % 3)}same."),),
        (Message("assistant", "Who knows" + " or cares" * (i % 4) + "."),),
        f"p.jsonl:{i}",
    )
    for i in range(8)
]
TINY: dict[str, Any] = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe([" ".join(m.content for p in PAIRS for m in (*p.prompt, *p.chosen, *p.rejected))] * 2, 300)


def tiny(seed: int) -> Transformer:
    return Transformer(preset("demo", vocab_size=300, initializer_range=0.2, **TINY), seed=seed)


def log_p(model: Transformer, tokenizer: Tokenizer, pair: Preference, chosen: bool) -> torch.Tensor:
    """log p of an answer, from the logits of that one conversation."""
    ids, trained = encode_conversation(tokenizer, pair.conversation(chosen))
    ids_T = torch.from_numpy(ids).long()
    log_TV = model(ids_T[None, :-1])[0].log_softmax(-1)
    return log_TV.gather(1, ids_T[1:, None])[:, 0][torch.from_numpy(trained[1:])].sum()


def written_out(model: Transformer, reference: Transformer, tokenizer: Tokenizer, beta: float) -> torch.Tensor:
    """Equation 7 of the paper, pair by pair; the mean."""
    losses = []
    for pair in PAIRS:
        better, worse = (
            log_p(model, tokenizer, pair, c) - log_p(reference, tokenizer, pair, c).detach() for c in (True, False)
        )
        losses.append(-torch.log(torch.sigmoid(beta * (better - worse))))
    return torch.stack(losses).mean()


def gradient(model: Transformer) -> torch.Tensor:
    grads = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad(set_to_none=True)
    return grads


def test_the_loss_is_the_papers_for_any_split_and_pack(tokenizer: Tokenizer) -> None:
    model, reference, beta = tiny(1), tiny(2), 0.7
    examples = with_reference(reference, [encode_preference(tokenizer, p) for p in PAIRS])
    loss = written_out(model, reference, tokenizer, beta)
    loss.backward()
    expected = gradient(model)
    for row, micro_batch in ((1000, 0), (200, 1), (200, 2), (120, 0), (60, 1)):
        batch = pack(examples, row, tokenizer.pad_id)
        assert pairs_in(batch) == sum(pairs_in(piece) for piece in split_rows(batch, micro_batch)) == len(PAIRS)
        total, right = 0.0, 0
        for piece in split_rows(batch, micro_batch):
            summed, figures = dpo_loss(beta)(model, piece)
            (summed / len(PAIRS)).backward()
            total, right = total + float(summed.detach()), right + int(figures["reward_accuracy"])
        assert total / len(PAIRS) == pytest.approx(float(loss), rel=1e-5) and 0 <= right <= len(PAIRS)
        found = gradient(model)
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        if row == 1000:
            first = found
        assert (found - first).norm() <= 1e-6 * first.norm()


def test_it_is_log_2_where_the_model_is_the_reference(tokenizer: Tokenizer) -> None:
    model = tiny(1)
    batch = pack(with_reference(model, [encode_preference(tokenizer, p) for p in PAIRS]), 128, tokenizer.pad_id)
    loss, figures = dpo_loss(0.1)(model, batch.with_empty_rows(3))
    assert float(loss) / len(PAIRS) == pytest.approx(math.log(2), abs=1e-6)
    assert abs(float(figures["reward_margin"])) < 1e-5
    empty = batch.with_empty_rows(1).rows(slice(-1, None))
    nothing, _ = dpo_loss(0.1)(model, empty)
    nothing.backward()
    assert float(nothing) == 0 and pairs_in(empty) == 0


def test_an_example_is_both_conversations_with_their_answers_trained(tokenizer: Tokenizer) -> None:
    e: Example = encode_preference(tokenizer, PAIRS[5])
    for number, answer in ((0, PAIRS[5].chosen), (1, PAIRS[5].rejected)):
        labels = e.labels[e.document == number]
        assert tokenizer.decode(labels[labels != IGNORED]) == f"{answer[0].content}<|im_end|>"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("dpo")
    save_tokenizer(tokenizer, folder / "model")
    save_model(tiny(1), folder / "model", eos_token_id=tokenizer.eos_id)
    rows = [
        {"prompt": p.prompt[0].content, "chosen": p.chosen[0].content, "rejected": p.rejected[0].content} for p in PAIRS
    ]
    same = {"prompt": "Q", "chosen": "same", "rejected": "same"}
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, same]))
    return folder


@pytest.mark.parametrize("rank", [0, 4])
def test_a_run_learns_what_is_preferred(base: Path, tmp_path: Path, rank: int, capsys: Any) -> None:
    config = FinetuneConfig(
        objective="dpo", epochs=8, batch_size=4, context=64, learning_rate=1e-3, lora_rank=rank, threads=1
    )
    done = finetune(base / "model", [base / "p.jsonl"], tmp_path / "out", config)
    told = capsys.readouterr().err
    assert "1 preferences whose two answers are the same" in told and "β = 0.1" in told and "the worse one:" in told
    assert "held out     nothing: only the training loss is measured" in told
    assert done.steps == 16 and done.pairs == 8 and done.loss < 0.4 and "8 preferences" in str(done)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and abs(rows[0]["reward_margin"]) < 1e-6
    assert rows[-1]["reward_accuracy"] == 1.0 and rows[-1]["reward_margin"] > 0.5
    assert (tmp_path / "out" / ("adapter_config.json" if rank else "config.json")).is_file()
    assert not (tmp_path / "out" / "reference.npy").exists()


def test_what_does_not_fit_is_said(base: Path, tmp_path: Path) -> None:
    def run(context: int, policy: Any) -> None:
        config = FinetuneConfig(objective="dpo", context=context, too_long=policy)
        finetune(base / "model", [base / "p.jsonl"], tmp_path / "out", config)

    with pytest.raises(TrainingError, match="no example fits into 4 tokens"):
        run(4, "drop")
    with pytest.raises(TrainingError, match="half a preference cannot be compared"):
        run(4, "split")
    with pytest.raises(
        TrainingError, match=r"examples? longer than 30 tokens: the longest has \d+ tokens, the first is"
    ):
        run(30, "error")
    (tmp_path / "same.jsonl").write_text(json.dumps({"prompt": "Q", "chosen": "same", "rejected": "same"}))
    with pytest.raises(TrainingError, match=r"same.jsonl: 1 preferences whose .*\nWrite .*rejected"):
        finetune(base / "model", [tmp_path / "same.jsonl"], tmp_path / "out", FinetuneConfig(objective="dpo"))
    assert not (tmp_path / "out").exists()


def test_the_best_of_preferences_is_not_asked_for() -> None:
    with pytest.raises(ConfigError, match="keep = 'best' needs held-out text"):
        FinetuneConfig(objective="dpo", keep="best")


def test_padding_beside_a_long_pair_is_no_text_that_the_model_cannot_read(tokenizer: Tokenizer) -> None:
    """A pair is a row of two conversations: the padding of a row with a short pair is longer than a conversation."""
    better, worse = ((Message("assistant", "very " * n + "same."),) for n in (60, 61))
    long = Preference(PAIRS[0].prompt, better, worse, "p.jsonl:9")
    both = [encode_preference(tokenizer, p) for p in (long, PAIRS[0])]
    context = max(int((e.document == d).sum()) for e in both for d in (0, 1))
    shape = preset("demo", vocab_size=300, initializer_range=0.2, max_position_embeddings=context, **TINY)
    model = Transformer(shape, seed=1)
    batch = pack(with_reference(Transformer(shape, seed=2), both), 2 * context, tokenizer.pad_id)
    assert int((batch.document_BT[1] < 0).sum()) > context
    shares = [Workers(rank, 3).share(batch) for rank in range(3)]  # the last has nothing but padding
    assert [pairs_in(share) for share in shares] == [1, 1, 0]
    parts = [float(dpo_loss(0.5)(model, share)[0]) for share in shares]
    assert parts[2] == 0 and sum(parts) == pytest.approx(float(dpo_loss(0.5)(model, batch)[0]), rel=1e-6)
