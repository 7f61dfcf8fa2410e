"""What a plan says of memory and time: what is free, whether a run fits, what to lower, how long."""

from __future__ import annotations

import re
import resource
import shlex
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from luthier.core.console import duration
from luthier.core.data.shards import write_shards
from luthier.core.training import execution, plan
from luthier.core.training.batches import Batch
from luthier.core.training.finetune import FinetuneConfig
from luthier.core.training.plan import training_memory
from luthier.core.training.pretrain import Given, PretrainConfig, prepare, pretrain
from luthier.models.config import ModelConfig, flops_per_token
from luthier.models.lora import LoraConfig, add_adapter, quantize_base
from luthier.models.transformer import Transformer
from luthier.scripts import cli

GB = 10**9
SIZE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 8, "num_attention_heads": 2}
CONFIG = PretrainConfig(**SIZE, num_key_value_heads=1, context=32, batch_size=4, steps=20, threads=1)
CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 9 GB free and no limits: a function that writes its files and asks what is free."""
    for name, file in (("MEMORY", "meminfo"), ("OWN_GROUPS", "cgroup"), ("OWN_SIZE", "statm"), ("GROUPS", "groups")):
        monkeypatch.setattr(execution, name, tmp_path / file)

    def free(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return execution.memory_free(CPU)

    free({"meminfo": f"MemTotal: 20 kB\nMemAvailable: {9 * GB // 1024} kB\n", "cgroup": "0::/\n"})
    return free


def group(folder, most, used, files=0, version=2):
    """A control group's files as Linux writes them."""
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    stat = f"anon 7\n{names[2]} {files}\nactive_file 5\n"
    return {f"groups/{folder}{names[0]}": f"{most}\n", f"groups/{folder}{names[1]}": f"{used}\n"} | {
        f"groups/{folder}memory.stat": stat
    }


def near(free, expected):
    return abs(free - expected) < 2048  # meminfo counts in kB


def test_a_container_may_take_what_is_left_of_its_limit(machine):
    """4 GB allowed, 3 held, 1 of them files that were read and can be forgotten: 2 left. Its group is the mount."""
    assert machine(group("", 4 * GB, 3 * GB, GB)) == 2 * GB
    assert machine({"cgroup": "0::/system.slice/docker-5f.scope\n"}) == 2 * GB  # by the host's name
    assert near(machine(group("", 40 * GB, 3 * GB)), 9 * GB)  # the machine has less than the group may take
    assert near(machine(group("", "max", 3 * GB)), 9 * GB)
    assert machine(group("", 4 * GB, 4 * GB + 1)) == 1  # full; 0 would mean that nobody says


def test_the_limits_of_the_groups_above_count(machine):
    own = {"cgroup": "0::/user/job/step\n", **group("user/job/step/", "max", GB, GB)}
    assert machine({**own, **group("user/job/", 8 * GB, GB), **group("user/", 5 * GB, 2 * GB)}) == 3 * GB
    assert machine(group("user/job/step/", 3 * GB, GB)) == 2 * GB


def test_groups_of_the_first_version(machine):
    """With the controllers in folders of their own; no limit is a number that no machine has."""
    machine({"cgroup": "12:pids:/job\n4:memory:/docker/5f\n3:cpu,cpuacct:/job\n1:name=systemd:/\n0::/\n"})
    assert near(machine(group("memory/", 2**63 - 4096, 5 * GB, version=1)), 9 * GB)
    assert machine(group("memory/docker/5f/", 6 * GB, 5 * GB, GB // 2, version=1)) == 1.5 * GB


def test_without_control_groups_or_a_number_that_is_free(machine):
    assert near(machine({}), 9 * GB)
    assert machine({"meminfo": "MemTotal: 20 kB\n"}) == 0


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from luthier.core.training.execution import memory_free

kind, pages = int(sys.argv[1]), Path("/proc/self/statm").read_text().split()
most = int(pages[int(sys.argv[2])]) * resource.getpagesize() + (1 << 30)
resource.setrlimit(kind, (most, resource.getrlimit(kind)[1]))
free = memory_free(torch.device("cpu"))
torch.empty(free - (1 << 26), dtype=torch.uint8)
try:
    torch.empty(free + (1 << 24), dtype=torch.uint8)
except RuntimeError as error:
    print(free, "can't allocate memory" in str(error))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="macOS says nowhere how much a process has taken")
@pytest.mark.parametrize(("kind", "field"), [(resource.RLIMIT_AS, 0), (resource.RLIMIT_DATA, 5)])
def test_what_a_process_may_take_by_itself(kind, field):
    """`ulimit -v` and `-d`, a GB above what a process has; allocating more than is said to be free fails. In a process
    of its own: one that has computed holds freed memory, which no limit counts."""
    command = [sys.executable, "-c", LIMITED, str(kind), str(field)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert told[1:] == ["True"] and 0.9 * GB < int(told[0]) <= 1.1 * GB


# ---------------------------------------------------------------- what fits


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """With a vocabulary of 16, so that the layers weigh most; `many` has one of 4,096."""
    folder = tmp_path_factory.mktemp("plan")
    documents = [np.arange(50) % 15 for _ in range(40)]
    write_shards(folder / "few", documents, documents[:3], vocab_size=16, eos_id=15)
    write_shards(folder / "many", documents, documents[:3], vocab_size=4096, eos_id=15)
    return folder


def parts(folder, config):
    """Shape, first batch and weights of a run."""
    prepared = prepare(config, Given((folder,)))
    return prepared.shape, prepared.arguments["batch_at"](0), sum(p.numel() for p in prepared.model.parameters())


def test_memory_that_fits_is_said_with_what_is_free(shards, tmp_path, monkeypatch, capsys):
    """The weights that are there already are not missing."""
    shape, first, weights = parts(shards / "few", CONFIG)
    need = training_memory(shape, CONFIG, first, weights)
    monkeypatch.setattr(execution, "memory_free", lambda device: need - 4 * weights)
    pretrain(shards / "few", tmp_path / "m", replace(CONFIG, steps=1))
    assert "that are free" in (told := capsys.readouterr().err) and "but only" not in told


@pytest.mark.parametrize(
    ("vocabulary", "given", "ways"),
    [("few", [], ["--micro-batch 2", "--micro-batch 1", "--recompute", "--precision bf16", "--optimizer adamw-8bit"]),
     ("few", ["--optimizer", "adamw-8bit", "--precision", "bf16"], ["--micro-batch 2", "--recompute"]),
     ("few", ["--parallel", "fsdp", "--optimizer", "adamw"], ["--recompute", "--precision bf16-pure"]),
     ("many", [], ["--micro-batch 2", "--optimizer adamw-8bit"]),
     ("many", ["--optimizer", "adamw", "--precision", "bf16-pure"], ["--micro-batch 2"])],
)  # fmt: skip
def test_a_plan_that_does_not_fit_names_the_first_settings_that_do(
    vocabulary, given, ways, shards, tmp_path, monkeypatch, capsys
):
    """Less and less is free: each way comes, in this order, and is a command that a plan finds to fit; in the end there
    is none."""
    size = [f"--{name.replace('_', '-')}={value}" for name, value in SIZE.items()]
    size += ["--num-key-value-heads=1", "--context=32", "--batch-size=4", "--steps=20", "--threads=1", *given]

    def told(free, flags=""):
        monkeypatch.setattr(execution, "memory_free", lambda device: free)
        folders = [str(shards / vocabulary), "--out", str(tmp_path / "m")]
        assert cli.main(["pretrain", *folders, "--plan", *size, *shlex.split(flags)]) == 0
        return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("  memory"))

    config = replace(CONFIG, **{given[i][2:]: given[i + 1] for i in range(0, len(given), 2)})  # pyright: ignore[reportArgumentType]
    shape, first, weights = parts(shards / vocabulary, config)
    most, found = training_memory(shape, config, first, weights), {}
    for free in range(most, plan.LIBRARIES, -20_000):
        said = plan._fits(shape, config, first, weights, 0, free)
        if "but only" in said and "smaller model" not in said:
            found.setdefault(re.split(r"are free: | needs about", said)[1], free)
    for flags, free in found.items():
        assert f"are free: {flags} needs about" in told(free)
        assert "but only" not in told(free, flags), flags
    seen = iter(found)
    assert all(any(way in flags for flags in seen) for way in ways), (list(found), ways)
    assert "no other setting fits either: take a smaller model" in told(plan.LIBRARIES)


def test_what_is_tuned_may_become_less():
    """Adapters, and a base in four bits; sizes against those of a real model."""
    shape = ModelConfig(vocab_size=64, num_hidden_layers=8)
    model = Transformer(shape)
    weights = sum(p.numel() for p in model.parameters())
    quantize_base(model)
    base = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    add_adapter(model, LoraConfig(8))
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    config = FinetuneConfig(micro_batch=1, recompute=True, precision="bf16", optimizer="adamw-8bit")
    ids = torch.zeros(4, 32, dtype=torch.int64)
    first = Batch(ids, ids, ids)
    whole = training_memory(shape, config, first, weights)
    four = training_memory(shape, replace(config, lora_rank=8, quantize="nf4"), first, adapters, base)
    assert "--lora-rank 8 needs" in plan._fits(shape, config, first, weights, 0, whole - 10**6)
    assert f"--lora-rank 8 --quantize nf4 needs about {four / 1e9:.1f}" in plan._fits(
        shape, config, first, weights, 0, four + 10**6
    )
    on = replace(config, lora_rank=8)
    assert "free: --quantize nf4 needs" in plan._fits(shape, on, first, adapters, 4 * weights, four + 10**6)
    assert "smaller model" in plan._fits(shape, on, first, adapters, 4 * weights, four - 10**6)
    fsdp = replace(config, parallel="fsdp", optimizer="adamw")
    assert "nf4" not in plan._fits(shape, fsdp, first, weights, 0, four + 10**6)


# ---------------------------------------------------------------- how long


def test_work_and_time(shards, tmp_path, monkeypatch, capsys):
    """By hand: 20 steps of 128 tokens, forward and twice that backward; with recompute once more forward; 9 times the
    tokens held out; Muon's five turns of three products on the matrices of 8 layers. Half of 1 GFLOP/s."""
    monkeypatch.setattr(execution, "matmul_speed", lambda *_: 1e9)

    def told(**changed):
        pretrain(shards / "few", tmp_path / "m", replace(CONFIG, **{"validation_tokens": 64, **changed}), plan=True)
        return next(line for line in capsys.readouterr().err.splitlines() if line.startswith("  work"))

    def expected(flop, word="at least"):
        return (
            f"2,560 tokens, {flop / 1e12:,.4f} TFLOP, 1 thread; {word} {duration(flop / 5e8)} at 50% of the 1 GFLOP/s"
        )

    shape, _, _ = parts(shards / "few", CONFIG)
    token = flops_per_token(shape, 32)
    once, measured = 20 * 128 * 3 * token, 8 * 64 * token  # steps 0, 3, 6 … 18, 20
    turns = [(64, 64)] * 2 + [(32, 64)] * 2 + [(64, 96)] * 3
    muon = 20 * 8 * sum(5 * (2 * r * r * c + 2 * r**3 + 2 * r * r * c) for r, c in turns)
    assert expected(once + measured + muon) in told()
    assert expected(once + measured) in told(optimizer="adamw")
    assert expected(once + measured + 20 * 128 * token) in told(optimizer="adamw", recompute=True)
    assert expected(once) in told(optimizer="adamw", validation_tokens=0)


@pytest.mark.parametrize(
    ("changed", "word"),
    [
        ({"hidden_size": 128}, "at least"),
        ({}, "about"),
        ({"micro_batch": 2}, "at least"),
        ({"context": 64}, "at least"),
    ],
)
def test_a_time_for_small_steps_is_the_least(changed, word, shards, tmp_path, capsys):
    """Wide models with many tokens at once reach half of a product's speed and more; others are not promised it."""
    wide: dict[str, Any] = {"hidden_size": 256, "context": 256, "batch_size": 4, "optimizer": "adamw", **changed}
    pretrain(shards / "few", tmp_path / "m", replace(CONFIG, **wide), plan=True)
    assert f"1 thread; {word} " in capsys.readouterr().err


def test_passes_are_tokens_read_over_tokens_there(shards, tmp_path, capsys):
    """Also where a window is longer than the text, which then goes round."""
    config = replace(CONFIG, context=8192, batch_size=2, steps=1)
    text = 40 * 51  # 50 ids and the end of each text
    assert config.context > 2 * text
    pretrain(shards / "few", tmp_path / "m", config, plan=True)
    assert f"1 of 2 × 8,192 tokens (given): {2 * 8192 / text:.1f} passes" in capsys.readouterr().err
