"""Out of memory: whatever the words, the message names settings, and what it names helps."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.core.data.shards import write_shards
from luthier.core.errors import TrainingError
from luthier.core.training.finetune import FinetuneConfig
from luthier.core.training.out_of_memory import is_out_of_memory, memory_told
from luthier.core.training.pretrain import PretrainConfig

CPU = "[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU), RuntimeError("std::bad_alloc"),
     OSError(12, "Cannot allocate memory"), RuntimeError("can't start new thread"),
     RuntimeError("could not create a primitive"), RuntimeError("could not execute a primitive")],
)  # fmt: skip
def test_every_way_of_saying_it_is_known(error):
    said = r"^out of memory: .+\n.*--micro-batch 4 \(rows at once, now 8\)"
    with pytest.raises(TrainingError, match=said), memory_told(PretrainConfig(batch_size=8)):
        raise error


def test_what_is_lower_already_is_not_advised():
    with pytest.raises(TrainingError) as told, memory_told(PretrainConfig(micro_batch=1, recompute=True, context=32)):
        raise MemoryError
    assert "micro-batch" not in str(told.value) and "recompute" not in str(told.value)
    assert "adamw-8bit" in str(told.value) and "smaller --model" in str(told.value)
    with pytest.raises(TrainingError) as told, memory_told(FinetuneConfig(lora_rank=4)):
        raise MemoryError
    assert "--quantize nf4" in str(told.value) and "--lora-rank" not in str(told.value)
    assert "--precision bf16, --optimizer adamw-8bit" in str(told.value)
    with pytest.raises(TrainingError) as told, memory_told(FinetuneConfig(optimizer="adamw-8bit", precision="bf16")):
        raise MemoryError
    assert "8bit" not in str(told.value) and "bf16" not in str(told.value)
    with pytest.raises(TrainingError) as told, memory_told(PretrainConfig(parallel="fsdp", optimizer="adamw")):
        raise MemoryError
    assert "8bit" not in str(told.value)


def test_other_errors_stay_what_they_are():
    assert not is_out_of_memory(RuntimeError("shapes differ")) and not is_out_of_memory(OSError(28, "No space left"))
    with pytest.raises(KeyError), memory_told(PretrainConfig()):
        raise KeyError("x")


# A process that may take 300 MB more than it has after its imports and a first small run.
PROGRAM = """
import resource, sys
from pathlib import Path
from luthier.core.training.pretrain import PretrainConfig, pretrain
from luthier.core.training.finetune import FinetuneConfig
from luthier.scripts.cli import run
size = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1)
size |= dict(steps=1, threads=1, validation_tokens=0)
first = PretrainConfig(batch_size=8, context=128, **size)  # loads every compiled loop
pretrain(Path("shards"), Path("first" + sys.argv[1]), first)
pages = int(Path("/proc/self/statm").read_text().split()[0])
most = pages * resource.getpagesize() + (300 << 20)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
config = PretrainConfig(batch_size=128, context=512, micro_batch=int(sys.argv[1]), **size)
sys.exit(run(lambda _: print(pretrain(Path("shards"), Path("model"), config)), []))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on the address space and /proc")
def test_a_run_without_the_memory_says_what_to_lower_and_that_helps(tmp_path):
    documents = [np.arange(900) % 60 for _ in range(90)]
    write_shards(tmp_path / "shards", documents, vocab_size=64, eos_id=63)

    def ran(rows):
        command = [sys.executable, "-c", PROGRAM, str(rows)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    failed = ran(0)
    assert failed.returncode == 1, failed.stderr
    assert "Traceback" not in failed.stderr, failed.stderr
    what, lower = failed.stderr.strip().splitlines()[-2:]
    assert what.startswith("luthier: out of memory: ") and "--micro-batch 64 (rows at once, now 128)" in lower
    lowered = ran(2)
    assert lowered.returncode == 0, lowered.stderr
    assert json.loads(Path(tmp_path / "model" / "metrics.jsonl").read_text().splitlines()[0])["step"] == 1
