"""The loop: normalisation that no split changes, exact resume, a stop at what is not a number."""

import json
import math
import sys
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from luthier.core.errors import TrainingError
from luthier.core.training import loop
from luthier.core.training.batches import IGNORED, Batch, Example, Windows, chance, mixed, pack, split_rows
from luthier.core.training.loop import evaluate_loss, fit
from luthier.core.training.loop_config import LoopConfig
from luthier.core.training.optimizers import make_optimizers


class Bigram(nn.Module):
    """The smallest language model with this package's interface: the next token given this one."""

    def __init__(self, vocabulary=13, width=8):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.up = nn.Linear(width, vocabulary, bias=False)
        for p in self.parameters():
            nn.init.normal_(p, std=0.3, generator=generator)

    def loss(self, ids_BT, labels_BT, *, document_BT=None):
        logits = self.up(self.embed_tokens(ids_BT)).flatten(0, 1)
        total = nn.functional.cross_entropy(logits, labels_BT.flatten(), ignore_index=IGNORED, reduction="sum")
        return total, int((labels_BT != IGNORED).sum())


def uneven(step, rows=6, width=9, vocabulary=13):
    """Rows with 1 to 9 trained tokens each."""
    random = chance(7, step)
    ids = random.integers(0, vocabulary, (rows, width))
    labels = random.integers(0, vocabulary, (rows, width))
    for row in range(rows):
        labels[row, int(random.integers(1, width + 1)) :] = IGNORED
    return Batch(torch.from_numpy(ids), torch.from_numpy(labels), torch.zeros(rows, width, dtype=torch.int64), (step,))


def run(folder, *, steps=8, model=None, batch_at=uneven, **arguments):
    folder.mkdir(exist_ok=True)
    model = model or Bigram()
    optimizers = make_optimizers(model, lr=0.02)
    done = fit(model, optimizers, batch_at, steps=steps, factor=lambda s: 1 - s / steps, folder=folder, **arguments)
    return model, done


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_micro_batches_change_nothing(tmp_path, rows):
    """Gradients of the whole batch and of its pieces agree to 1e-6 by norm, although pieces hold unequal counts."""
    whole, pieces = Bigram(), Bigram()
    batch = uneven(0)
    (loop.next_token_loss(whole, batch) / batch.trained).backward()
    for piece in split_rows(batch, rows):
        (loop.next_token_loss(pieces, piece) / batch.trained).backward()
    for p, q in zip(whole.parameters(), pieces.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        assert float((p.grad - q.grad).norm() / p.grad.norm()) < 1e-6
    one, _ = run(tmp_path / "whole")
    many, _ = run(tmp_path / "pieces", micro_batch=rows)
    for p, q in zip(one.parameters(), many.parameters(), strict=True):
        assert float((p - q).detach().norm() / p.detach().norm()) < 1e-5


def test_loss_falls_and_is_recorded(tmp_path):
    fixed = uneven(3)
    _, done = run(tmp_path / "a", steps=30, batch_at=lambda _: fixed, validation=[fixed], evaluate_every=10)
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in rows if "loss" in r]
    assert len(losses) == 30 and losses[-1] < losses[0] * 0.9
    assert [r["step"] for r in rows if "validation_loss" in r] == [0, 10, 20, 30]
    assert rows[-1]["validation_loss"] == done.validation_loss and losses[-1] == rows[-2]["loss"]
    assert [r["tokens"] for r in rows if "tokens" in r] == [fixed.trained * (i + 1) for i in range(30)]


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [1, 3, 4, 7])
def test_resumed_run_is_bit_equal(tmp_path, at):
    """Stopped at any step and started again: same weights, same metrics, whatever the spacing of checkpoints."""
    validation = [uneven(100)]
    whole, _ = run(tmp_path / "whole", validation=validation, evaluate_every=3)

    def dies(step):
        if step == at:
            raise Killed
        return uneven(step)

    with pytest.raises(Killed):
        run(tmp_path / "cut", batch_at=dies, save_every=0, validation=validation, evaluate_every=3)
    assert [p.name for p in (tmp_path / "cut").glob("step-*")] == [f"step-{at:08d}"]
    with (tmp_path / "cut" / "metrics.jsonl").open("a") as file:  # what a killed run wrote after its checkpoint
        file.write('{"step": 99, "lo')
    again, done = run(tmp_path / "cut", validation=validation, evaluate_every=3)
    assert done.resumed_at == at and same(whole, again)
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == (tmp_path / "cut" / "metrics.jsonl").read_bytes()
    assert not list((tmp_path / "cut").glob("step-*"))


def interrupted(folder, at, **arguments):
    """A run that dies at step `at` and has a checkpoint of every step before."""

    def dies(step):
        if step == at:
            raise Killed
        return uneven(step)

    with pytest.raises(Killed):
        run(folder, batch_at=dies, save_every=0, **arguments)


def test_resume_takes_the_number_of_threads_from_the_checkpoint(tmp_path):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        interrupted(tmp_path / "a", 3)
        torch.set_num_threads(1)
        run(tmp_path / "a", until=4)
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        with pytest.raises(TrainingError, match=r"--threads: 2 then, 1 now(.|\n)*--allow-inexact"):
            run(tmp_path / "a", config=LoopConfig(threads=1))
        _, done = run(tmp_path / "a", config=LoopConfig(threads=1, allow_inexact=True))
        assert done.resumed_at == 3 and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("key", "then", "words"),
    [("torch", "1.0", "version of PyTorch: 1.0 then"), ("processes", 4, "processes: 4 then, 1 now")],
)
def test_a_checkpoint_computed_otherwise_is_refused(tmp_path, key, then, words):
    interrupted(tmp_path / "a", 3)
    file = tmp_path / "a" / "step-00000003" / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: then}))
    with pytest.raises(TrainingError, match=words):
        run(tmp_path / "a")
    assert run(tmp_path / "a", config=LoopConfig(allow_inexact=True))[1].resumed_at == 3


def test_a_checkpoint_of_an_earlier_version_names_the_version(tmp_path):
    interrupted(tmp_path / "a", 3)
    file = tmp_path / "a" / "step-00000003" / "state.json"
    state = json.loads(file.read_text())
    del state["luthier"]
    file.write_text(json.dumps({**state, "kernels": "torch"}))
    with pytest.raises(TrainingError, match=r"otherwise \(the version of luthier: an earlier one then, [^;]* now\)"):
        run(tmp_path / "a")


def test_micro_batches_and_compiling_are_not_changed_in_silence(tmp_path):
    interrupted(tmp_path / "a", 3, micro_batch=2)
    with pytest.raises(TrainingError, match=r"--micro-batch: 2 then, 3 now"):
        run(tmp_path / "a", micro_batch=3)
    with pytest.raises(TrainingError, match=r"--compile: off then, on now"):
        run(tmp_path / "a", micro_batch=2, config=LoopConfig(compile="on"))


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    interrupted(tmp_path / "a", 3)
    other = Bigram()
    other.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(TrainingError, match="another model: extra"):
        run(tmp_path / "a", model=other)


def test_random_numbers_go_on_where_they_stopped(tmp_path):
    """A model that drops out at random is resumed exactly, too: torch's random state is in the checkpoint."""

    class Dropping(Bigram):
        def loss(self, ids_BT, labels_BT, *, document_BT=None):
            logits = self.up(nn.functional.dropout(self.embed_tokens(ids_BT), 0.5, self.training)).flatten(0, 1)
            return nn.functional.cross_entropy(logits, labels_BT.flatten(), ignore_index=IGNORED, reduction="sum"), 0

    torch.manual_seed(5)
    whole, _ = run(tmp_path / "whole", model=Dropping())
    torch.manual_seed(5)
    interrupted(tmp_path / "cut", 4, model=Dropping())
    torch.manual_seed(6)
    again, _ = run(tmp_path / "cut", model=Dropping())
    assert same(whole, again)


def test_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    from luthier.core.training import checkpoint

    written, save = [], checkpoint._save

    def full(tensors, path):
        written.append(path)
        if len(written) > 3:  # the second file of the second checkpoint
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")
        save(tensors, path)

    monkeypatch.setattr(checkpoint, "_save", full)
    with pytest.raises(TrainingError, match=r"step 2 could not be written: No space left.*\nstep-00000001 is whole"):
        run(tmp_path / "a", save_every=0)
    assert [p.name for p in (tmp_path / "a").iterdir() if p.is_dir()] == ["step-00000001"]
    monkeypatch.setattr(checkpoint, "_save", save)
    assert same(run(tmp_path / "a")[0], run(tmp_path / "b")[0])


def test_checkpoints_are_written_beside_the_loop(tmp_path, monkeypatch):
    """While one is written, steps go on, and what is written is the state at its step."""
    from luthier.core.training import checkpoint

    slow, save = threading.Event(), checkpoint._save
    monkeypatch.setattr(checkpoint, "_save", lambda tensors, path: (slow.wait(30), save(tensors, path)))
    model, seen = Bigram(), []

    def batches(step):
        seen.append(step)
        if step == 6:
            slow.set()
            dying(folder)  # before another is begun, which would take the place of the first
        return uneven(step)

    first, _ = run(tmp_path / "first", until=1)
    folder = tmp_path / "a"
    with pytest.raises(Killed):
        run(folder, model=model, batch_at=batches, save_every=1e-9)
    assert seen == list(range(7))
    weights = load_file(folder / "step-00000001" / "model.safetensors")
    assert all(torch.equal(weights[name], p) for name, p in first.named_parameters())


def dying(folder, step=1):
    while not (folder / f"step-{step:08d}").is_dir():
        time.sleep(0.001)
    raise Killed


def test_metrics_on_a_full_disk(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop.os, "fsync", full)
    with pytest.raises(TrainingError, match=r"metrics.jsonl cannot be written: No space left"):
        run(tmp_path / "a")


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_a_line_that_the_disk_does_not_take(tmp_path):
    """The operating system itself refuses to write on; closing the file, which tries again, does not hide the word."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, before[1]))
    try:
        with pytest.raises(TrainingError, match=r"metrics.jsonl cannot be written: File too large\nmake room"):
            run(tmp_path / "a")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert same(run(tmp_path / "a")[0], run(tmp_path / "b")[0])


# ---------------------------------------------------------------- what is kept


def test_keep_every_leaves_a_checkpoint_at_each_evaluation(tmp_path):
    run(tmp_path / "a", validation=[uneven(100)], evaluate_every=3, save_every=0, config=LoopConfig(keep="every"))
    assert sorted(p.name for p in (tmp_path / "a").glob("step-*")) == ["step-00000003", "step-00000006"]


def test_a_run_that_goes_on_from_its_first_evaluation_does_not_make_it_again(tmp_path):
    arguments = {"validation": [uneven(100)], "evaluate_every": 3, "config": LoopConfig(keep="every")}
    run(tmp_path / "whole", **arguments)
    with pytest.raises(Killed):
        run(tmp_path / "a", batch_at=lambda _: dying(tmp_path / "a", 0), **arguments)
    run(tmp_path / "a", **arguments)
    assert (tmp_path / "a" / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("killed_at", [0, 7, 31])
def test_keep_best_ends_with_the_model_of_the_lowest_loss(tmp_path, killed_at):
    """The rows that are trained after step 6 of 40 teach the opposite of what is measured."""
    good, held_out = uneven(3), [uneven(3)]
    bad = Batch(good.ids_BT, (good.labels_BT + 5) % 13, good.document_BT, ())
    bad.labels_BT[good.labels_BT == IGNORED] = IGNORED
    arguments = {"steps": 40, "validation": held_out, "evaluate_every": 3}

    def batches(step):
        if step == killed_at and not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            raise Killed
        return good if step < 6 else bad

    config = LoopConfig(keep="best")
    if killed_at:
        with pytest.raises(Killed):
            run(tmp_path / "a", batch_at=batches, config=config, save_every=0, **arguments)
    model, done = run(tmp_path / "a", batch_at=lambda s: good if s < 6 else bad, config=config, **arguments)
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    losses = {r["step"]: r["validation_loss"] for r in rows if "validation_loss" in r}
    assert min(losses.values()) < losses[40] - 0.01
    assert evaluate_loss(model, held_out, loop.next_token_loss) == min(losses.values()) == done.validation_loss
    assert not list((tmp_path / "a").glob("step-*"))


# ---------------------------------------------------------------- spikes


def spiking(at, size=40.0):
    """Batches of which number `at` is learned the loss of as if every token were `size` nats dearer."""

    def loss_of(model, batch):
        return loop.next_token_loss(model, batch) + (size * batch.trained if batch.sources == (at,) else 0.0)

    return loss_of


LONG = {"steps": 30, "validation": [uneven(100)], "evaluate_every": 5}


def test_a_spike_is_told_or_stops_and_names_batch_and_documents(tmp_path, capsys):
    run(tmp_path / "a", loss_of=spiking(22), **LONG)
    told = capsys.readouterr().err
    assert "step 23: loss" in told and "a spike" in told and "Batch 22, of the documents: 22" in told
    with pytest.raises(TrainingError, match=r"step 23: .*a spike\nBatch 22, of the documents: 22\n.*rollback"):
        run(tmp_path / "b", loss_of=spiking(22), config=LoopConfig(on_spike="stop"), **LONG)


@pytest.mark.parametrize("size", [40.0, math.nan])
@pytest.mark.parametrize("killed_at", [0, 21, 24])
def test_rollback_goes_back_to_the_last_evaluation_and_leaves_batches_out(tmp_path, size, killed_at):
    """Equal to a run that never had the batches 20, 21 and 22; also when it is killed before or after the rollback."""
    rollback = {**LONG, "config": LoopConfig(on_spike="rollback"), "loss_of": spiking(22, size)}
    plain, _ = run(tmp_path / "plain", batch_at=lambda step: uneven(step if step < 20 else step + 3), **LONG)
    if killed_at:

        def batches(step):
            if step == killed_at + (3 if killed_at > 22 else 0):
                raise Killed
            return uneven(step)

        with pytest.raises(Killed):
            run(tmp_path / "a", batch_at=batches, save_every=0, **rollback)
    model, _ = run(tmp_path / "a", save_every=0, **rollback)
    assert same(model, plain)
    rows = [json.loads(line) for line in (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()]
    assert {"step": 20, "rolled_back_from": 23, "batches_left_out": 3} in rows
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, 31))
    assert [r["step"] for r in rows if "validation_loss" in r] == list(range(0, 31, 5))


def test_a_kill_while_a_step_is_written_once_more_loses_nothing(tmp_path):
    rollback = {**LONG, "config": LoopConfig(on_spike="rollback"), "loss_of": spiking(22)}
    plain, _ = run(tmp_path / "plain", batch_at=lambda step: uneven(step if step < 20 else step + 3), **LONG)
    with pytest.raises(Killed):
        run(tmp_path / "a", batch_at=lambda s: dying(tmp_path / "a", 20) if s == 23 else uneven(s), **rollback)
    (tmp_path / "a" / "step-00000020").rename(tmp_path / "a" / ".step.writing")  # the old one gone, the new one unnamed
    model, done = run(tmp_path / "a", **rollback)
    assert done.resumed_at == 20 and same(model, plain)


def test_a_run_that_is_to_roll_back_from_now_on(tmp_path):
    """The evaluation's checkpoint was not kept: it goes back to where it was started again."""
    plain, _ = run(tmp_path / "plain", batch_at=lambda step: uneven(step if step < 21 else step + 2), **LONG)
    with pytest.raises(Killed):
        run(tmp_path / "a", batch_at=lambda s: dying(tmp_path / "a", s) if s == 21 else uneven(s), save_every=0, **LONG)
    rollback = {**LONG, "config": LoopConfig(on_spike="rollback"), "loss_of": spiking(22)}
    model, done = run(tmp_path / "a", **rollback)
    assert done.resumed_at == 21 and same(model, plain)


def test_rollback_gives_up_when_every_batch_is_bad(tmp_path, capsys):
    """And does not advise what it has done ten times."""
    with pytest.raises(
        TrainingError, match=r"not a number\nBatch 10, .*\nRolled back 10 times.* lower the learning rate$"
    ):
        run(tmp_path / "a", loss_of=lambda m, b: loop.next_token_loss(m, b) * math.nan,
            config=LoopConfig(on_spike="rollback"), **LONG)  # fmt: skip
    told = capsys.readouterr().err
    assert "not a number\nBatch 3, of the documents: 3\nRolled back to step 0; the next batch is 4\n" in told


def test_not_a_number_stops_and_names_step_and_documents(tmp_path):
    def broken(step):
        batch = uneven(step)
        return Batch(batch.ids_BT, batch.labels_BT, batch.document_BT, (("care.pdf", "notes.md"),))

    model = Bigram()
    with torch.no_grad():
        model.up.weight[0, 0] = math.inf
    with pytest.raises(TrainingError, match=r"step 1: .*not a number(.|\n)*care.pdf, notes.md"):
        run(tmp_path / "a", model=model, batch_at=broken)


# ---------------------------------------------------------------- batches


def ring(lengths, context, seed=0):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.arange(offsets[-1], dtype=np.uint16)
    names = [f"d{i}" for i in range(len(lengths))]
    return Windows(tokens, offsets, names, np.arange(len(lengths)), context=context, seed=seed), offsets


@settings(max_examples=50)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.integers(1, 30), st.integers(0, 3))
def test_windows_cover_every_token_of_an_epoch(lengths, context, epoch):
    windows, offsets = ring(lengths, context)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    seen = []
    for i in range(len(windows)):
        w = windows[epoch * len(windows) + i]
        seen += w.labels.tolist()
        assert len(w.ids) == len(w.labels) == context
        inside = np.flatnonzero(~np.isin(w.labels, offsets[:-1]))  # not the first token of a document
        assert (w.labels[inside] == w.ids[inside] + 1).all()
        assert all((owner[w.labels[w.document == d]] == owner[w.labels[w.document == d][0]]).all() for d in w.document)
    assert set(seen) == set(range(offsets[-1]))
    assert len(seen) - offsets[-1] < context


def test_windows_depend_on_seed_epoch_and_position_only():
    a, _ = ring([30, 50, 20], 7)
    b, _ = ring([30, 50, 20], 7)
    later = b[40].ids
    assert all((a[i].ids == b[i].ids).all() for i in reversed(range(41))) and (a[40].ids == later).all()
    other, _ = ring([30, 50, 20], 7, seed=1)
    assert any((a[i].ids != other[i].ids).any() for i in range(len(a)))
    assert any((a[i].ids != a[i + len(a)].ids).any() for i in range(len(a)))


def test_mixture_keeps_its_share_and_uses_each_window_once():
    a, _ = ring([64], 4)
    b, _ = ring([64], 4, seed=5)
    a.names, b.names = ["a"], ["b"]
    drawn = [mixed(a, b, 0.25, i).source for i in range(64)]
    assert drawn.count(("b",)) == 16 and max(len(run) for run in "".join(d[0] for d in drawn).split("b")) <= 4
    assert mixed(a, None, 0.25, 3).source == ("a",)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(8, 80))
def test_packs_hold_every_example_once_and_apart(lengths, row):
    examples = [Example(np.full(n, i + 1), np.full(n, i + 1), np.zeros(n, np.int64), i) for i, n in enumerate(lengths)]
    batch = pack(examples, row, pad_id=0)
    assert batch.ids_BT.shape[1] <= max(row, *lengths) and batch.trained == sum(lengths)
    for b in range(len(batch.ids_BT)):
        for number in batch.document_BT[b].unique():
            held = batch.ids_BT[b][batch.document_BT[b] == number].unique()
            assert len(held) == 1 and (number >= 0) == (held.item() > 0)
    assert sorted(batch.ids_BT.flatten().tolist()) == sorted(
        [0] * (batch.ids_BT.numel() - sum(lengths)) + [i + 1 for i, n in enumerate(lengths) for _ in range(n)]
    )
