"""Evaluation: every held-out sample once, on any number of ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from trainer.data.corpus import Corpus
from trainer.data.loading import Loader
from trainer.data.order import Order
from trainer.strategies import Placement
from trainer.tasks import Task


def held_out_loader(task: Task, corpus: Corpus, seed: int, rows_at_once: int, placement: Placement, workers: int) -> Loader:
    """The held-out rows in the table's order. Every rank has the same number of micro-batches, some perhaps without targets."""
    split = corpus.split("eval")
    return Loader(
        task=task,
        split=split,
        order=Order(seed, len(split.rows), shuffle=False),
        total=len(split.rows),
        global_batch=rows_at_once * placement.data_size,
        micro_batch=rows_at_once,
        data_rank=placement.data_rank,
        data_size=placement.data_size,
        workers=workers,
    )


def evaluate(placement: Placement, task: Task, corpus: Corpus, loader: Loader, device: torch.device) -> dict[str, Any]:
    """Figures over the whole held-out split, equal on every rank: `eval_loss` (the objective), `eval_<term>_loss`, the task's metrics."""
    module = placement.module
    was_training = module.training
    module.eval()
    names: list[str] = []
    total: torch.Tensor | None = None
    targets = dict.fromkeys(task.terms, 0)
    try:
        with torch.no_grad():
            for step in loader.steps():
                for term in targets:
                    targets[term] += step.targets[term]
                for batch in step.micro_batches:
                    sums = module(batch.to(device))
                    names = list(sums)
                    values = torch.stack([value.double() for value in sums.values()])
                    total = values if total is None else total + values
    finally:
        module.train(was_training)
    assert total is not None, "prepare refuses an empty held-out split"
    if placement.data_size > 1:
        dist.all_reduce(total)
    sums_by_name = dict(zip(names, total.tolist(), strict=True))
    losses = {term: sums_by_name[term] / max(1, targets[term]) for term in task.terms}
    figures: dict[str, Any] = {"eval_loss": sum(weight * losses[term] for term, weight in task.terms.items())}
    if len(losses) > 1:
        figures |= {f"eval_{term}_loss": loss for term, loss in losses.items()}
    return figures | task.metrics(sums_by_name, targets, corpus)
