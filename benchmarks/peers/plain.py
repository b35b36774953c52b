"""The loop that one writes by hand: PyTorch alone, nothing but the step. What a framework costs is measured against it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

from benchmarks.pace import Pace, Stopwatch
from benchmarks.peers.rows import Data, Samples, build_model, pad
from trainer.config import Config


def pace(config: Config, data: Data, warm: int = 1) -> Pace:
    """A transformers model on padded batches."""
    loader = torch.utils.data.DataLoader(Samples(config, data), batch_size=config.global_batch, collate_fn=pad)
    return train(config, build_model(config, data), loader, lambda model, batch: model(**batch).loss, warm)


def train(
    config: Config, model: nn.Module, batches: Iterable[Any], loss_of: Callable[[nn.Module, Any], torch.Tensor], warm: int = 1
) -> Pace:
    """One update a batch with the optimizer, schedule and clipping of the configuration; the pace after the first `warm` steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    optim, schedule, steps = config.optim, config.schedule, config.steps or 0
    model.to(device).train()
    parameters = list(model.parameters())
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": optim.weight_decay},  # type: ignore[attr-defined]
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)  # type: ignore[attr-defined]
    autocast = torch.autocast(device.type, dtype=torch.bfloat16) if config.precision.autocast else nullcontext()
    losses, watch = [], Stopwatch()
    for step, batch in enumerate(batches):
        if step == warm:
            watch.begin()
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        for group in optimizer.param_groups:
            group["lr"] = optim.lr * schedule.factor(step, steps)  # type: ignore[attr-defined]
        with autocast:
            loss = loss_of(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, optim.max_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    watch.end()
    return watch.pace(steps - warm, torch.stack(losses).tolist())
