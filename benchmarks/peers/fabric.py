"""Lightning Fabric as its users run it: their own loop, with model, optimizer and batches handed to Fabric, and its precision."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.pace import Pace, Stopwatch
from benchmarks.peers.plain import adamw, rate
from trainer.config import Config


def train(config: Config, model: nn.Module, batches: DataLoader[Any], warm: int = 1) -> Pace:
    """The whole budget; the pace after the first `warm` steps. Needs the package `lightning`."""
    from lightning.fabric import Fabric

    steps, accumulated = config.steps or 0, config.global_batch // int(config.micro_batch)
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    fabric = Fabric(accelerator=accelerator, devices=1, precision="bf16-mixed" if config.precision.autocast else "32-true")
    fabric.launch()
    model.train()
    placed, optimizer = fabric.setup(model, adamw(config, model))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        loader: Iterable[Any] = fabric.setup_dataloaders(batches)
    given = iter(loader)
    losses, watch = [], Stopwatch()
    for step in range(steps):
        if step == warm:
            watch.begin()
        for group in optimizer.param_groups:
            group["lr"] = rate(config, step)
        total = torch.zeros((), device=fabric.device)
        for number in range(accumulated):
            with fabric.no_backward_sync(placed, enabled=number < accumulated - 1):
                loss = placed(**next(given))["loss"] / accumulated
                fabric.backward(loss)
            total += loss.detach()
        if config.optim.max_norm:
            fabric.clip_gradients(placed, optimizer, max_norm=config.optim.max_norm)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    watch.end()
    return watch.pace(steps - warm, torch.stack(losses).tolist())
