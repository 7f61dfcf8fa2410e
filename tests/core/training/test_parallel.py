"""Two processes on the CPU (gloo): the losses of one, with ddp and fsdp; resumed exactly; and on another number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.core.data.shards import write_shards
from luthier.core.errors import TrainingError
from luthier.core.training.batches import Batch
from luthier.core.training.loop import fit
from luthier.core.training.parallel import Workers
from luthier.core.training.pretrain import Given, PretrainConfig, prepare, pretrain
from luthier.models.checkpoints import load_model

# batch 5: the processes' shares are uneven. Muon for ddp, AdamW for fsdp.
SIZE = "hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1"
SETTINGS = f"{SIZE}, context=32, batch_size=5, steps=14, evaluate_every=4, threads=1, keep='every', learning_rate=2e-3"
PROGRAM = f"""
from pathlib import Path
from luthier.core.training.loop import fit
from luthier.core.training.parallel import start_workers
from luthier.core.training.pretrain import Given, PretrainConfig, prepare, pretrain

given = Given((Path("shards"),))
for kind, optimizer in (("ddp", "muon"), ("fsdp", "adamw")):
    config = PretrainConfig({SETTINGS}, parallel=kind, optimizer=optimizer, micro_batch=2)
    pretrain(Path("shards"), Path(f"two-{{kind}}"), config)
    workers = start_workers(kind)
    cut = Path(f"cut-{{kind}}")
    for until in (10, 14):  # ends at step 10, leaves the checkpoints of 4 and 8, and is started again
        run = prepare(config, given, workers).arguments
        cut.mkdir(exist_ok=True)
        workers.wait()
        fit(folder=cut, config=config, workers=workers, until=until, **run)
        workers.wait()
    run = prepare(config, given, workers).arguments
    other = Path(f"other-{{kind}}")
    other.mkdir(exist_ok=True)
    workers.wait()
    fit(folder=other, config=config, workers=workers, until=9, **run)
wide = PretrainConfig(**{{**dict({SETTINGS}), "hidden_size": 512, "steps": 2}}, parallel="fsdp", optimizer="adamw")
pretrain(Path("shards"), Path("two-wide"), wide)
"""

# One process is slow to give a checkpoint its name, the other to read it. Held-out loss grows from 1, and the sixth
# step is a spike: both go back to step 4, and end with the weights of step 0, which is deleted when both have read it.
SLOW = f"""
import time
from pathlib import Path
import torch
from torch.distributed.checkpoint import FileSystemReader
from luthier.core.training import loop
from luthier.core.training.parallel import start_workers
from luthier.core.training.pretrain import Given, PretrainConfig, prepare

workers = start_workers("ddp")
rename, read, losses, norms = Path.rename, FileSystemReader.read_data, iter(range(1, 99)), iter(range(99))

def slow_rename(path, target):
    time.sleep(0.5 if path.name == ".step.writing" else 0)
    return rename(path, target)

def slow_read(*arguments):
    time.sleep(0 if workers.main else 0.5)
    return read(*arguments)

Path.rename, FileSystemReader.read_data = slow_rename, slow_read
loop.evaluate_loss = lambda *_, **__: float(next(losses))
loop.is_spike = lambda *_: next(norms) == 5
settings = dict({SETTINGS})
config = PretrainConfig(**{{**settings, "keep": "best", "on_spike": "rollback"}}, optimizer="adamw", micro_batch=2)
run = prepare(config, Given((Path("shards"),)), workers).arguments
slow = Path("slow")
slow.mkdir(exist_ok=True)
workers.wait()
loop.fit(folder=slow, config=config, workers=workers, **run)
torch.save(run["model"].state_dict(), f"slow-{{int(workers.main)}}.pt")
"""


def torchrun(folder, program):
    (folder / "program.py").write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "program.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr[-4000:]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    random = np.random.Generator(np.random.PCG64(0))
    documents = [np.sort(random.integers(0, 60, size)) for size in random.integers(20, 90, 40)]
    write_shards(folder / "shards", documents, documents[:3], vocab_size=64, eos_id=63)
    torchrun(folder, PROGRAM)
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def numbers(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row.get("loss", row.get("validation_loss")) for row in rows], [r["grad_norm"] for r in rows if "loss" in r]


@pytest.mark.parametrize(("kind", "optimizer"), [("ddp", "muon"), ("fsdp", "adamw")])
def test_two_processes_are_one(place, kind, optimizer):
    config = eval(f"PretrainConfig({SETTINGS}, optimizer={optimizer!r})", {"PretrainConfig": PretrainConfig})
    pretrain(place / "shards", place / f"one-{kind}", config)
    one, two = numbers(place / f"one-{kind}" / "metrics.jsonl"), numbers(place / f"two-{kind}" / "metrics.jsonl")
    np.testing.assert_allclose(one[0], two[0], rtol=1e-5)
    np.testing.assert_allclose(one[1], two[1], rtol=1e-4)
    mine = dict(load_model(place / f"one-{kind}").named_parameters())
    for name, p in load_model(place / f"two-{kind}").named_parameters():
        torch.testing.assert_close(p, mine[name], rtol=1e-3, atol=1e-5)


def test_two_processes_are_one_where_compiled_loops_take_the_weights(place):
    """So wide that the rows are a loop's work: what NumPy looked at, FSDP could not free."""
    settings = eval(f"dict({SETTINGS})") | {"hidden_size": 512, "steps": 2}
    pretrain(place / "shards", place / "one-wide", PretrainConfig(**settings, optimizer="adamw"))
    one, two = (numbers(place / f"{name}-wide" / "metrics.jsonl")[0] for name in ("one", "two"))
    np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_resumed_on_two_processes_is_bit_equal(place, kind):
    assert (place / f"cut-{kind}" / "metrics.jsonl").read_bytes() == (
        place / f"two-{kind}" / "metrics.jsonl"
    ).read_bytes()
    assert list((place / f"cut-{kind}" / "step-00000008").glob("*.distcp"))


@pytest.mark.parametrize(("kind", "optimizer"), [("ddp", "muon"), ("fsdp", "adamw")])
@pytest.mark.filterwarnings("error:torch.distributed is disabled")
def test_two_processes_checkpoints_load_in_one(place, kind, optimizer):
    settings = f"PretrainConfig({SETTINGS}, optimizer={optimizer!r}, micro_batch=2, allow_inexact=ALLOW)"
    config = eval(settings.replace("ALLOW", "False"), {"PretrainConfig": PretrainConfig})
    run = prepare(config, Given((place / "shards",))).arguments
    with pytest.raises(TrainingError, match="number of processes: 2 then, 1 now"):
        fit(folder=place / f"other-{kind}", config=config, **run)
    config = eval(settings.replace("ALLOW", "True"), {"PretrainConfig": PretrainConfig})
    run = prepare(config, Given((place / "shards",))).arguments
    done = fit(folder=place / f"other-{kind}", config=config, **run)
    assert done.resumed_at == 8
    alone, both = (numbers(place / f"{n}-{kind}" / "metrics.jsonl")[0] for n in ("other", "two"))
    np.testing.assert_allclose(alone, both, rtol=1e-5)


def test_processes_wait_for_one_another_at_checkpoints(place):
    torchrun(place, SLOW)
    ours, main = (torch.load(place / f"slow-{number}.pt") for number in (0, 1))
    assert all(torch.equal(ours[name], main[name]) for name in main)
    config = eval(f"PretrainConfig({SETTINGS})", {"PretrainConfig": PretrainConfig})
    fresh = prepare(config, Given((place / "shards",))).arguments["model"].state_dict()
    assert all(torch.equal(fresh[name], main[name]) for name in main)


def test_shares_are_all_rows_once():
    batch = Batch(torch.arange(10).view(5, 2), torch.arange(10).view(5, 2), torch.zeros(5, 2, dtype=torch.int64))
    shares = [Workers(rank, 3).share(batch) for rank in range(3)]
    assert [len(s.ids_BT) for s in shares] == [2, 2, 2] and sum(s.trained for s in shares) == batch.trained
