"""Replay and verify: a run made again is the run, and one that was tampered with is found at its step."""

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.core.artifacts import write_json
from luthier.core.data.encode import encode
from luthier.core.errors import InputError, TrainingError
from luthier.core.show.show import show
from luthier.core.training.finetune import FinetuneConfig, finetune
from luthier.core.training.pretrain import PretrainConfig, pretrain
from luthier.core.training.replay import checkpoints_of, open_run, replay
from luthier.core.training.runs import settings, write_run
from luthier.core.training.tracing import trace
from luthier.core.training.verify import verify
from luthier.models.checkpoints import load_model
from luthier.scripts import cli
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import save_tokenizer

SIZE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = PretrainConfig(
    **SIZE, num_key_value_heads=1, context=32, batch_size=4, steps=24, evaluate_every=6, threads=1, keep="every"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("replay")
    texts = [f"Part {i} of the piano is made of {w}. " * 8 for i, w in enumerate(["spruce", "maple", "iron", "felt"])]
    tokenizer = train_bpe(texts, 300)
    save_tokenizer(tokenizer, folder / "tokenizer")
    for number, text in enumerate(texts):
        (folder / f"part{number}.txt").write_text(text)
    encode([folder / f"part{i}.txt" for i in range(4)], folder / "tokenizer", folder / "shards")
    pretrain(folder / "shards", folder / "model", CONFIG, tokenizer=folder / "tokenizer")
    return folder


def copied(place, tmp_path):
    shutil.copytree(place / "model", tmp_path / "model")
    return tmp_path / "model"


def test_a_step_is_the_same_to_the_bit_and_its_parts_add_up(place):
    for step in (1, 6, 7, 24):
        found = replay(place / "model", step)
        assert found.exact and found.started_at == max(0, (step - 1) // 6 * 6)
        assert sum(t.loss for t in found.tokens) / len(found.tokens) == pytest.approx(found.loss, rel=1e-5)
        assert sum(g**2 for g in found.gradients.values()) ** 0.5 == pytest.approx(found.grad_norm, rel=1e-5)
        assert list(found.gradients) == ["embed_tokens", "layers.0", "layers.1", "norm"]
        assert found.dearest[0].loss == max(t.loss for t in found.tokens)


def test_a_batch_is_traced_to_its_documents(place):
    """Every stretch that the trace names, read from the file it names, is what the batch holds."""
    run = open_run(place / "model")
    for number in (0, 5, 23):
        batch = run.arguments["batch_at"](number)
        for row in range(4):
            stretches = [t for t in trace(run, number) if t.row == row]
            assert sum(t.tokens for t in stretches) == 32
            labels = batch.labels_BT[row].tolist()
            for t in stretches:
                text = (place / t.name.rsplit("/", 1)[-1]).read_text()
                ids = [*run.tokenizer.encode(text).tolist(), run.tokenizer.eos_id][t.first : t.first + t.tokens]
                assert labels[: t.tokens] == ids
                labels = labels[t.tokens :]


def test_pages(tmp_path, place):
    """A document of a corpus whose second half stands on page 2."""
    from luthier.core.data.collect import collect

    source = tmp_path / "docs"
    source.mkdir()
    (source / "handbook.md").write_text(
        "\n\n".join(f"Paragraph {i}: the felt of hammer {i} is soft." for i in range(40))
    )
    collect([source], tmp_path / "corpus")
    rows = [json.loads(line) for line in (tmp_path / "corpus" / "documents.jsonl").read_text().splitlines()]
    half = len(rows[0]["text"]) // 2
    rows[0]["spans"] = [{"start": 0, "end": half, "page": 1, "block": 0},
                        {"start": half, "end": 2 * half, "page": 2, "block": 1}]  # fmt: skip
    encode([tmp_path / "corpus"], place / "tokenizer", tmp_path / "shards")
    (tmp_path / "corpus" / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = replace(CONFIG, steps=3, validation_tokens=0)  # one document: none is held out
    pretrain(tmp_path / "shards", tmp_path / "model", config, tokenizer=place / "tokenizer")
    run = open_run(tmp_path / "model")
    pages = set()
    for t in (t for number in range(3) for t in trace(run, number)):
        assert t.pages is not None
        before = len(run.tokenizer.decode(run.tokenizer.encode(rows[0]["text"])[: t.first]))
        assert t.pages[0] == (1 if before < half else 2) and t.pages[0] <= t.pages[1]
        pages.add(t.pages)
    assert (1, 1) in pages and (2, 2) in pages


def test_an_honest_run_is_confirmed(place, capsys):
    found = verify(place / "model", segments=4)
    assert "new weights" not in capsys.readouterr().err
    assert found.equal and [(s.start, s.end) for s in found.stretches] == [(0, 6), (6, 12), (12, 18), (18, 24)]
    assert all(s.compared for s in found.stretches)
    assert cli.main(["verify", str(place / "model"), "--segments", "1", "--seed", "3"]) == 0
    assert "losses and weights bit-equal" in capsys.readouterr().out


@pytest.mark.parametrize("loss", ["9.0", "9.123456789012345678"])
def test_a_changed_record_is_found_at_its_step(place, tmp_path, loss):
    """Also where the file is shorter or longer since."""
    model = copied(place, tmp_path)
    lines = (model / "metrics.jsonl").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if '"step": 10, "loss"' in line)
    row = json.loads(lines[at])
    lines[at] = lines[at].replace(json.dumps(row["loss"]), loss)
    (model / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    found = verify(model, segments=4)
    assert [s.differs_at for s in found.stretches] == [None, 10, None, None]
    told = f"loss is {float(loss)!r} in metrics.jsonl, {row['loss']!r} made again"
    assert f"steps 7 to 12: DIFFERS, first at step 10: {told}\n" in str(found)
    assert not replay(model, 10).exact


def test_a_changed_measurement_is_found(place, tmp_path):
    model = copied(place, tmp_path)
    lines = (model / "metrics.jsonl").read_text().splitlines()
    assert sum("validation_loss" in line for line in lines) == 5
    for step in (0, 12):
        at = next(i for i, line in enumerate(lines) if f'"step": {step}, "validation_loss"' in line)
        lines[at] = json.dumps({"step": step, "validation_loss": 1.0})
    (model / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert [s.differs_at for s in verify(model, segments=4).stretches] == [0, 12, None, None]


def test_a_changed_mean_of_the_optimizer_is_found(place, tmp_path):
    """By the last bit of one."""
    model = copied(place, tmp_path)
    file = model / "step-00000018" / "optimizer.safetensors"
    means = load_file(file)
    name = next(n for n in means if n.endswith(".v"))
    first = means[name].view(-1)[:1]
    first.copy_(torch.nextafter(first, torch.tensor([1.0])))
    save_file(means, file)
    found = verify(model, segments=4).stretches
    assert found[2].weights == f"the optimizer's {name}" and found[0].equal and found[1].equal


@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_a_damaged_checkpoint_is_named(place, tmp_path, name):
    model = copied(place, tmp_path)
    file = model / "step-00000012" / f"{name}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(TrainingError, match=rf"step-00000012/{name}\.safetensors is damaged or gone.*\nPut it back"):
        verify(model, segments=4)


def test_a_run_whose_best_model_was_kept(place, tmp_path):
    """The folder holds the weights of a step before the last: compared there, and nowhere accused."""
    config = replace(CONFIG, keep="best", learning_rate=0.02, schedule="constant", steps=12, evaluate_every=3)
    pretrain(place / "shards", tmp_path / "m", config, tokenizer=place / "tokenizer")
    rows = [json.loads(line) for line in (tmp_path / "m" / "metrics.jsonl").read_text().splitlines()]
    best = min((row["validation_loss"], row["step"]) for row in rows if "validation_loss" in row)[1]
    assert 0 < best < 12
    found = verify(tmp_path / "m", segments=4).stretches
    assert all(s.equal for s in found) and [(s.end, s.compared) for s in found] == [(12, False), (best, True)]
    file = tmp_path / "m" / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"][0] += 1e-6
    save_file(weights, file, metadata={"format": "pt"})
    assert [s.weights for s in verify(tmp_path / "m", segments=4).stretches] == ["", "norm.weight"]


def test_a_shape_that_changed_is_named(place, tmp_path):
    shutil.copytree(place / "model", shape := tmp_path / "shape", ignore=shutil.ignore_patterns("step-*", "*.json*l*"))
    config = PretrainConfig(model=str(shape), context=32, batch_size=4, steps=2, threads=1)
    pretrain(place / "shards", tmp_path / "m", config)
    assert verify(tmp_path / "m").equal
    (shape / "config.json").write_text((shape / "config.json").read_text() + "\n")
    with pytest.raises(InputError, match=r"config\.json \(shape\) has changed"):
        verify(tmp_path / "m")
    shutil.rmtree(shape)
    with pytest.raises(InputError, match=r"config\.json \(shape\) is gone"):
        verify(tmp_path / "m")


def test_a_run_of_several_processes_is_not_confirmed_by_one(place, tmp_path):
    model = copied(place, tmp_path)
    about = json.loads((model / "run.json").read_text())
    assert about["processes"] == 1
    (model / "run.json").write_text(json.dumps({**about, "processes": 2}))
    for again in (lambda: verify(model), lambda: replay(model, 2)):
        with pytest.raises(TrainingError, match="was trained by 2 processes"):
            again()


@pytest.mark.parametrize("keep", ["every", "last"])
def test_a_run_computed_by_other_kernels_is_not_accused(place, tmp_path, monkeypatch, keep):
    """Whether its checkpoints say so or run.json; from its first step on, and from a checkpoint."""
    model = tmp_path / "m"
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("luthier.core.training.execution.ways", lambda: "other kernels")
        config = replace(CONFIG, keep=keep, allow_inexact=True)
        pretrain(place / "shards", model, config, tokenizer=place / "tokenizer")
        assert verify(model, segments=1).equal
    said = rf"{model} was computed otherwise \(the machine's kernels: other kernels then, .* cannot be checked on this"
    for again in (lambda: verify(model), lambda: replay(model, 2), lambda: replay(model, 20)):
        with pytest.raises(TrainingError, match=said) as told:
            again()
        assert "--allow-inexact" not in str(told.value)


def test_a_run_of_before_the_rate_could_be_left_out(place, tmp_path):
    folder = copied(place, tmp_path)
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**about, "config": {**about["config"], "learning_rate": 0.0}}))
    assert open_run(folder).config.learning_rate is None
    assert settings(PretrainConfig())["learning_rate"] == 0.0  # its work is the same work


def test_a_run_remembers_the_most_processes(tmp_path):
    write_json(tmp_path / "run.json", {"processes": 2})
    write_run(tmp_path, "pretrain", PretrainConfig(), {})
    assert json.loads((tmp_path / "run.json").read_text())["processes"] == 2


def test_a_finished_run_without_checkpoints_says_how_it_was_computed(place, tmp_path, capsys):
    pretrain(place / "shards", tmp_path / "m", replace(CONFIG, keep="last"), tokenizer=place / "tokenizer")
    about = json.loads((tmp_path / "m" / "run.json").read_text())
    assert not checkpoints_of(tmp_path / "m") and about["threads"] == about["choices"]["threads"] == 1
    show(tmp_path / "m")
    told = capsys.readouterr().out
    assert "kept in run.json" in told and f"torch        {torch.__version__}" in told
    assert f"kernels      {about['choices']['kernels']}" in told
    assert verify(tmp_path / "m").equal


def test_a_changed_weight_is_found(place, tmp_path):
    model = copied(place, tmp_path)
    file = model / "model.safetensors"
    weights = load_file(file)
    name = next(n for n in weights if n.endswith("layers.1.mlp.up_proj.weight"))
    weights[name][0, 0] += 1e-6
    save_file(weights, file, metadata={"format": "pt"})
    found = verify(model, segments=4)
    assert [s.weights for s in found.stretches] == ["", "", "", "layers.1.mlp.up_proj.weight"]


def test_what_cannot_be_rebuilt_is_said(place, tmp_path):
    with pytest.raises(InputError, match="no step 25: its steps are 1 to 24"):
        replay(place / "model", 25)
    with pytest.raises(InputError, match=r"no run.json: it is no run"):
        verify(place / "shards" / "..")
    model = copied(place, tmp_path)
    about = json.loads((model / "run.json").read_text())
    about["given"]["shards"] = [str(tmp_path / "gone")]
    (model / "run.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"gone \(shards\) is gone"):
        replay(model, 1)
    about["given"]["shards"] = [str(place / "model")]
    (model / "run.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"\(shards\) has changed"):
        replay(model, 1)


KINDS = (
    {},
    {"lora_rank": 2},
    {"lora_rank": 2, "merge": True},
    {"lora_rank": 2, "lora_kind": "dora", "quantize": "nf4"},
)


@pytest.mark.parametrize("settings", KINDS)
def test_tuning_is_rebuilt_too(place, tmp_path, settings):
    rows = [{"question": f"What is part {i} made of?", "answer": f"It is made of {i}."} for i in range(8)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = FinetuneConfig(epochs=6, batch_size=4, context=64, threads=1, keep="every", **settings)
    finetune(place / "model", [tmp_path / "q.jsonl"], tmp_path / "tuned", config)
    assert replay(tmp_path / "tuned", 11).exact
    found = verify(tmp_path / "tuned", segments=5)
    assert found.equal and all(stretch.compared for stretch in found.stretches)
    if "lora_rank" in settings:
        changed = tmp_path / "tuned" / ("model.safetensors" if "merge" in settings else "adapter_model.safetensors")
        weights = load_file(changed)
        name = next(name for name in weights if "q_proj" in name)
        weights[name][0, 0] += 1e-3
        save_file(weights, changed, metadata={"format": "pt"})
        found = verify(tmp_path / "tuned", segments=5)
        assert [s.weights for s in found.stretches] == ["", "", "", "layers.0.self_attn.q_proj.weight"]


def test_show_a_step_and_two_curves(place, tmp_path, capsys):
    show(place / "model", step=7)
    told = capsys.readouterr().out
    assert "step 7 of" in told and "batch 6, loss" in told and "part" in told and "tokens 0 to" in told
    for verb in ("show", "replay"):
        assert cli.main([verb, str(place / "model"), "--step", "0"]) == 1
        assert "model has no step 0: its steps are 1 to " in capsys.readouterr().err
    other = replace(CONFIG, batch_size=2, keep="last")
    pretrain(place / "shards", tmp_path / "other", other, tokenizer=place / "tokenizer")
    show(place / "model", others=[tmp_path / "other"])
    told = capsys.readouterr().out
    assert "batch_size: a 4, b 2" in told and "learning_rate" not in told
    assert "loss over steps" in told and "loss over tokens" in told
    assert cli.main(["replay", str(place / "model"), "--step", "7"]) == 0
    told = capsys.readouterr().out
    assert "the same to the bit" in told and "layers.1" in told
    assert cli.main(["replay", str(place / "model"), "--step", "7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["exact"] is True


def test_kept_checkpoints_are_whole(place):
    """Those kept are the run's own: from any of them the end is reached."""
    assert sorted(p.name for p in (place / "model").glob("step-*")) == [
        "step-00000006",
        "step-00000012",
        "step-00000018",
    ]
    weights = load_file(place / "model" / "step-00000018" / "model.safetensors")
    assert all(torch.isfinite(w).all() for w in weights.values())
    assert load_model(place / "model").config.hidden_size == 32
