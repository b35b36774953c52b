"""The loop that one writes by hand: PyTorch alone, nothing but the step. What a framework costs is measured against it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.pace import Pace, Stopwatch
from benchmarks.peers.rows import Collate, Items
from trainer.config import Config


def train(config: Config, model: nn.Module, batches: Iterable[Any], warm: int = 1) -> Pace:
    """The whole budget on micro-batches as they come, which the model takes as they are; the pace after the first `warm` steps."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = config.steps or 0
    model.to(device).train()
    optimizer = adamw(config, model)
    autocast = torch.autocast(device.type, dtype=torch.bfloat16) if config.precision.autocast else nullcontext()
    batches = iter(batches)
    accumulated = config.global_batch // int(config.micro_batch)
    losses, watch = [], Stopwatch()
    for step in range(steps):
        if step == warm:
            watch.begin()
        for group in optimizer.param_groups:
            group["lr"] = rate(config, step)
        total = torch.zeros((), device=device)
        for _ in range(accumulated):
            batch = {name: tensor.to(device, non_blocking=True) for name, tensor in next(batches).items()}
            with autocast:
                loss = model(**batch)["loss"] / accumulated
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.max_norm or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    watch.end()
    return watch.pace(steps - warm, torch.stack(losses).tolist())


def adamw(config: Config, model: nn.Module) -> torch.optim.AdamW:
    """The optimizer of the configuration, with its decay groups."""
    optim: Any = config.optim
    parameters = list(model.parameters())
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": optim.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)


def rate(config: Config, step: int) -> float:
    """The learning rate of a step, from 0."""
    return float(config.optim.lr * config.schedule.factor(step, config.steps or 0))  # type: ignore[attr-defined]


def loader(config: Config, items: Items, collate: Collate) -> DataLoader[Any]:
    """Micro-batches in the order of the items."""
    return DataLoader(items, batch_size=int(config.micro_batch), collate_fn=collate, pin_memory=torch.cuda.is_available())  # type: ignore[arg-type]
