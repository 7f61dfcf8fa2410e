"""Number formats learn what float32 learns, and resume exactly; recomputing and compiling change nothing; plans."""

import json
import sys
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from luthier.core.artifacts import write_jsonl
from luthier.core.data.shards import open_shards, write_shards
from luthier.core.errors import ConfigError
from luthier.core.training.curves import Curves
from luthier.core.training.execution import FIRST_SCALE, has_compiler, kernels_said, rescale
from luthier.core.training.loop import fit
from luthier.core.training.optimizers import AdamW
from luthier.core.training.pretrain import Given, PretrainConfig, prepare, pretrain
from luthier.models.checkpoints import load_model
from luthier.scripts import cli

SIZE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = PretrainConfig(
    **SIZE, num_key_value_heads=1, context=32, batch_size=4, steps=20, threads=1, optimizer="adamw", learning_rate=5e-3
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("precision")
    random = np.random.default_rng(0)
    documents = [np.sort(random.integers(0, 60, size)) for size in random.integers(20, 90, 40)]
    write_shards(folder / "shards", documents, documents[:3], vocab_size=64, eos_id=63)
    write_shards(folder / "other", documents[:9], vocab_size=64, eos_id=63)
    return folder / "shards"


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([row["loss"] for row in rows if "loss" in row])


@pytest.mark.parametrize("precision", ["bf16", "bf16-pure", "fp16"])
def test_formats_learn_alike_and_resume_exactly(shards, tmp_path, precision):
    pretrain(shards, tmp_path / "fp32", CONFIG)
    config = replace(CONFIG, precision=precision, keep="every", evaluate_every=8)
    pretrain(shards, tmp_path / "half", config)
    assert np.abs(losses(tmp_path / "half") - losses(tmp_path / "fp32")).max() < 0.1
    assert losses(tmp_path / "half")[-1] < losses(tmp_path / "half")[0] - 0.5
    (tmp_path / "cut").mkdir()
    for until in (11, None):
        run = prepare(config, Given((shards,))).arguments
        fit(folder=tmp_path / "cut", config=config, until=until, **run)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "half" / "metrics.jsonl").read_bytes()
    dtype = torch.bfloat16 if precision == "bf16-pure" else torch.float32
    assert load_model(tmp_path / "half").embed_tokens.weight.dtype in (dtype, torch.float32)
    state = json.loads((tmp_path / "half" / "step-00000016" / "state.json").read_text())
    assert (state["scale"] > 1) == (precision == "fp16")


def test_small_steps_are_not_rounded_away():
    """300 steps of 1e-4 from 1, where bfloat16's neighbours are 2⁻⁸ apart: 0.97 on average, not 1."""
    p = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    optimizer = AdamW([p], 1e-4, weight_decay=0.0)
    for _ in range(300):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert abs(float(p.detach().float().mean()) - 0.97) < 0.002
    assert {s.dtype for s in optimizer.state[p].values()} == {torch.int64, torch.float32}


def test_the_loss_scale_halves_at_an_overflow_and_grows_after_2000_good_steps():
    assert rescale(8.0, 5, False) == (4.0, 0) and rescale(8.0, 5, True) == (8.0, 6)
    assert rescale(8.0, 1999, True) == (16.0, 0) and rescale(1.0, 0, False) == (1.0, 0)


def test_an_overflow_in_float16_makes_no_step(shards, tmp_path):
    """With a scale of 2⁴⁰ the first gradients are infinite: those steps are left out and said in metrics.jsonl."""
    import luthier.core.training.loop as loop

    config = replace(CONFIG, precision="fp16")
    old = loop.FIRST_SCALE
    loop.FIRST_SCALE = 2.0**26
    try:
        pretrain(shards, tmp_path / "a", config)
    finally:
        loop.FIRST_SCALE = old
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    over = [row.get("overflow", False) for row in rows if "loss" in row]
    assert over[0] and not over[-1] and FIRST_SCALE == 2.0**16
    assert losses(tmp_path / "a")[-1] < losses(tmp_path / "a")[0] - 0.3


def test_recomputing_changes_no_bit(shards, tmp_path):
    pretrain(shards, tmp_path / "a", CONFIG)
    pretrain(shards, tmp_path / "b", replace(CONFIG, recompute=True))
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "b" / "metrics.jsonl").read_bytes()


# ---------------------------------------------------------------- plans, mixtures, curves


def test_a_plan_makes_nothing_and_says_everything(shards, tmp_path, capsys):
    arguments = ["pretrain", str(shards), "--out", str(tmp_path / "m"), "--steps", "7", "--plan", "--micro-batch", "2"]
    assert cli.main([*arguments, "--context", "32"]) == 0
    told = capsys.readouterr()
    kernels = f"precision    fp32; kernels {kernels_said(torch.device('cpu'))}"
    for words in ("parameters", "7 of 8 × 32 tokens, each in 4 pieces (given)", "TFLOP", "GFLOP/s", "memory", "GB",
                  "new weights  normal, deviation 0.02", kernels,
                  "8 rows of 32 tokens, 256 of them trained"):  # fmt: skip
        assert words in told.err, words
    assert not told.out and not list(tmp_path.iterdir())


def test_a_plan_makes_no_weights(shards, capsys):
    """Of a model that no machine could hold, and with µP."""
    huge = replace(CONFIG, intermediate_size=1 << 30)
    for config in (huge, replace(huge, mup_base_width=16)):
        pretrain(shards, shards.parent / "m", config, plan=True)
        assert "206,158,438,560 parameters" in capsys.readouterr().err  # 2 layers of 3 products of 32 × 2³⁰


def test_folders_are_mixed_by_weight(shards, tmp_path):
    both = (shards, shards.parent / "other")
    text = prepare(replace(CONFIG, weights=(3.0, 1.0)), Given(both)).text
    assert text is not None
    drawn = [text.locate(i) for i in range(400)]
    second = [place for windows, place in drawn if windows is text.parts[1][0]]
    assert len(second) == 100 and second == list(range(100))
    assert [p for w, p in drawn if w is text.parts[0][0]] == list(range(300))
    shares = [share for _, share in prepare(CONFIG, Given(both)).text.parts]  # pyright: ignore[reportOptionalMemberAccess]
    sizes = [len(open_shards(folder).tokens) for folder in both]
    assert shares == pytest.approx([size / sum(sizes) for size in sizes])
    with pytest.raises(ConfigError, match="1 weights for 2 folders"):
        pretrain(both, tmp_path / "m", replace(CONFIG, weights=(1.0,)))
    done = pretrain(both, tmp_path / "m", replace(CONFIG, steps=2))
    assert done.steps == 2


def test_tensorboard_gets_the_curve(shards, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # pyright: ignore[reportMissingImports]

    pretrain(shards, tmp_path / "m", replace(CONFIG, tensorboard=True, evaluate_every=10))
    events = EventAccumulator(str(tmp_path / "m" / "tensorboard"))
    events.Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(losses(tmp_path / "m").tolist(), rel=1e-6)
    assert [e.step for e in events.Scalars("validation_loss")] == [0, 10, 20]


def test_tensorboard_gets_a_step_once_though_a_run_begins_anew(shards, tmp_path, monkeypatch):
    """The first start dies at step 5, before any checkpoint; what TensorBoard had by then lies on the disk."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = replace(CONFIG, tensorboard=True)
    with monkeypatch.context() as dies, pytest.raises(KeyboardInterrupt):
        write = Curves.write
        dies.setattr(Curves, "write", lambda *a: _raise(KeyboardInterrupt) if a[1]["step"] == 5 else write(*a))
        pretrain(shards, tmp_path / "m", config)
    assert not list((tmp_path / ".m.building").glob("step-*"))
    pretrain(shards, tmp_path / "m", config)
    events = accumulator.EventAccumulator(str(tmp_path / "m" / "tensorboard"))
    events.Reload()
    assert len(list((tmp_path / "m" / "tensorboard").iterdir())) == 2
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 21))


def test_a_line_on_a_rollback_is_no_point_of_a_curve_that_is_handed_over_again(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    rows = [{"step": 1, "loss": 2.0}, {"step": 1, "rolled_back_from": 3, "batches_left_out": 2}]
    write_jsonl(tmp_path / "metrics.jsonl", rows)
    with Curves(replace(CONFIG, tensorboard=True), tmp_path, start=1):
        pass
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]


def _raise(error: type[BaseException]) -> None:
    raise error


def test_wandb_gets_the_curve_and_knows_a_run_that_goes_on(shards, tmp_path, monkeypatch):
    """The first start dies at step 12, and what the packages held back with it: step 8 on, and TensorBoard's file."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    begun, rows, board = [], [], tmp_path / ".m.building" / "tensorboard"

    def log(row, step):
        if len(begun) == 1 and step == 12:
            raise KeyboardInterrupt
        if len(begun) == 2 or step < 8:
            rows.append((step, row))

    def init(**arguments):
        begun.append(arguments)
        return SimpleNamespace(log=log, finish=lambda: None, step=8 * (len(begun) - 1))

    wandb = ModuleType("wandb")
    wandb.__spec__, wandb.init = ModuleSpec("wandb", None), init  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = replace(CONFIG, wandb="piano", tensorboard=True, evaluate_every=10, save_every=0.0)
    with pytest.raises(KeyboardInterrupt):
        pretrain(shards, tmp_path / "m", config)
    for file in board.iterdir():
        file.unlink()
    pretrain(shards, tmp_path / "m", config)
    assert [step for step, row in rows if "validation_loss" in row] == [0, 10, 20]
    assert [row["loss"] for _, row in rows if "loss" in row] == losses(tmp_path / "m").tolist()
    assert begun[0] == begun[1] and begun[0]["id"] and (begun[0]["project"], begun[0]["name"]) == ("piano", "m")
    events = accumulator.EventAccumulator(str(tmp_path / "m" / "tensorboard"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == list(range(1, 21))
    assert [e.step for e in events.Scalars("validation_loss")] == [0, 10, 20]


def test_a_missing_package_is_named_before_anything_is_made(shards, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="wandb is not installed: pip install wandb"):
        pretrain(shards, tmp_path / "m", replace(CONFIG, wandb="piano"))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="bf16-pure' rounds by chance, which AdamW does"):
        PretrainConfig(precision="bf16-pure")


def test_without_a_compiler_compile_says_so_and_runs_as_it_is(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not has_compiler()
    monkeypatch.undo()  # PyTorch reads CXX once, when it first compiles
    monkeypatch.setattr("luthier.core.training.execution.has_compiler", lambda: False)
    pretrain(shards, tmp_path / "asked", replace(CONFIG, compile="on"))
    told = [line for line in capsys.readouterr().err.splitlines() if "compile  " in line]
    assert len(told) == 1 and "no C++ compiler" in told[0]
    pretrain(shards, tmp_path / "plain", CONFIG)
    assert (losses(tmp_path / "asked") == losses(tmp_path / "plain")).all()


@pytest.mark.skipif(not has_compiler(), reason="needs a C++ compiler")
def test_compiled_layers_learn_the_same_and_a_resumed_run_is_compiled_too(shards, tmp_path):
    config = replace(CONFIG, steps=8, keep="every", evaluate_every=4)
    pretrain(shards, tmp_path / "eager", config)
    pretrain(shards, tmp_path / "compiled", replace(config, compile="on"))
    np.testing.assert_allclose(losses(tmp_path / "compiled"), losses(tmp_path / "eager"), rtol=1e-5)
    (tmp_path / "cut").mkdir()
    for until, compiled in ((6, "on"), (None, "auto")):  # started again, it does as its checkpoint says
        again = replace(config, compile=compiled)
        fit(folder=tmp_path / "cut", config=again, until=until, **prepare(again, Given((shards,))).arguments)
    assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == (tmp_path / "compiled" / "metrics.jsonl").read_bytes()
