"""An objective of your own: SimPO (Meng et al. 2024, arXiv:2405.14734), added without a change to the package.

Like DPO it makes the better answer likelier than the worse one, but asks no reference: an answer's reward is the mean
log-probability of its tokens, and the better one shall lead by γ:   −log σ(β · (mean₊ − mean₋) − γ)

    python examples/own_objective.py MODEL PREFERENCES.jsonl OUT
"""

import sys
from pathlib import Path

import torch.nn.functional as F

from luthier.core.training.dpo import log_probs, log_ratios
from luthier.core.training.finetune import FinetuneConfig, finetune

BETA, GAMMA = 2.0, 0.5


def simpo(model, batch):
    """The sum of the losses of all pairs, and a sum to log; `fit` divides both by the number of pairs."""
    better, worse = log_ratios(log_probs(model, batch), batch)  # Σ log p of both answers of every pair
    tokens_better, tokens_worse = log_ratios((batch.labels_BT >= 0).float(), batch)
    margin = BETA * (better / tokens_better - worse / tokens_worse)
    return -F.logsigmoid(margin - GAMMA).sum(), {"reward_margin": margin.detach().sum()}


if __name__ == "__main__":
    model, data, out = (Path(argument) for argument in sys.argv[1:4])
    print(finetune(model, [data], out, FinetuneConfig(objective="dpo"), loss_of=simpo))
