"""Fine-tuning by two processes on the CPU (gloo): the losses and weights of one; resumed exactly; only one speaks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from luthier.core.training.finetune import FinetuneConfig, finetune
from luthier.examples.own_objective import simpo
from luthier.models.adapter_files import open_model
from luthier.models.checkpoints import save_model
from luthier.models.config import preset
from luthier.models.transformer import Transformer
from luthier.tokenizers.bpe_train import train_bpe
from luthier.tokenizers.formats import save_tokenizer

ROWS = [{"prompt": f"What is part {i}?", "completion": f"Part {i} is the {i} of {i * i}."} for i in range(10)]
BASE = "epochs=4, batch_size=5, context=64, threads=1, micro_batch=2"
# Three rows of 64 tokens a step and fewer: the processes' shares are uneven, and one of them may have no pair at all.
KINDS = {
    "whole": "optimizer='muon', learning_rate=1e-2",
    "whole-fsdp": "parallel='fsdp', learning_rate=1e-2",
    "lora": "lora_rank=4, learning_rate=1e-2",
    "dora-fsdp": "lora_rank=4, lora_kind='dora', parallel='fsdp', learning_rate=1e-2",
    "nf4": "lora_rank=4, quantize='nf4', merge=True, learning_rate=1e-2",
    "nf4-fsdp": "lora_rank=4, quantize='nf4', merge=True, parallel='fsdp', learning_rate=1e-2",
    "dpo": "objective='dpo', lora_rank=4, learning_rate=2e-3",
    "dpo-fsdp": "objective='dpo', parallel='fsdp', learning_rate=1e-3, sample='What is'",
    "own-fsdp": "objective='dpo', parallel='fsdp', learning_rate=1e-3",
}
PROGRAM = f"""
from pathlib import Path
from luthier.core.training.examples import read_pairs, read_wordings
from luthier.core.training.finetune import FinetuneConfig, finetune, prepare
from luthier.core.training.loop import fit
from luthier.core.training.parallel import start_workers
from luthier.examples.own_objective import simpo

for name, more in {KINDS!r}.items():
    data = [Path("p.jsonl" if "dpo" in more else "c.jsonl")]
    config = eval(f"FinetuneConfig({BASE}, {{more}}, keep='every')")
    loss_of = simpo if name.startswith("own") else None
    print(finetune(Path("model"), data, Path(f"two-{{name}}"), config, loss_of=loss_of).out)
    workers = start_workers(config.parallel)
    cut = Path(f"cut-{{name}}")
    for until in (5, None):  # ends at step 5, leaves the checkpoints of 2 and 4, and is started again
        found = read_pairs(data) if "dpo" in more else read_wordings(data)
        cut.mkdir(exist_ok=True)
        run = prepare(config, Path("model"), found, None, Path("model"), keep=cut, workers=workers)
        run |= {{}} if loss_of is None else {{"loss_of": loss_of}}
        workers.wait()
        fit(folder=cut, config=config, workers=workers, until=until, **run)
        workers.wait()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel-tuning")
    tokenizer = train_bpe([" ".join(f"{r['prompt']} {r['completion']}" for r in ROWS)] * 3, 300)
    save_tokenizer(tokenizer, folder / "model")
    shape = preset("demo", vocab_size=300, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
                   num_attention_heads=2, num_key_value_heads=1, initializer_range=0.2)  # fmt: skip
    save_model(Transformer(shape, seed=1), folder / "model")
    (folder / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pairs = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "No."} for r in ROWS]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (folder / "program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "program.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert not done.returncode, done.stderr
    assert done.stderr.count("  model        ") == len(KINDS), done.stderr  # the plan is said by one of them
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def numbers(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row], [row["grad_norm"] for row in rows if "loss" in row]


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_are_one(place, name):
    config = eval(f"FinetuneConfig({BASE}, {KINDS[name]})", {"FinetuneConfig": FinetuneConfig})
    data = [place / ("p.jsonl" if "dpo" in KINDS[name] else "c.jsonl")]
    loss_of = simpo if name.startswith("own") else None
    finetune(place / "model", data, place / f"one-{name}", config, loss_of=loss_of)
    one, two = numbers(place / f"one-{name}" / "metrics.jsonl"), numbers(place / f"two-{name}" / "metrics.jsonl")
    assert len(one[0]) == 8 and one[0][-1] < 0.9 * one[0][0]
    np.testing.assert_allclose(one[0], two[0], rtol=1e-5)
    np.testing.assert_allclose(one[1], two[1], rtol=1e-4)
    mine = dict(open_model(place / f"one-{name}").named_parameters())
    for key, p in open_model(place / f"two-{name}").named_parameters():
        torch.testing.assert_close(p, mine[key], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", KINDS)
def test_resumed_on_two_processes_is_bit_equal(place, name):
    cut, two = (place / f"{n}-{name}" / "metrics.jsonl" for n in ("cut", "two"))
    assert cut.read_bytes() == two.read_bytes()
    assert list((place / f"cut-{name}" / "step-00000004").glob("*.distcp"))
