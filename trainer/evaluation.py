"""Evaluation: every held-out sample once, on any number of ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from trainer.data.batches import Batches
from trainer.data.corpus import Corpus, open_corpus
from trainer.data.loading import Loader
from trainer.data.order import Order
from trainer.strategies import Placement
from trainer.tasks import Task

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.run import RunDir


class HeldOut:
    """What is evaluated at the same steps: the held-out part of the run's own data, or a named set.

    name: "" for the run's own. every: steps between two evaluations, or None for the end only. loaders: of each source by its name.
    """

    def __init__(self, name: str, corpus: Corpus, every: int | None, task: Task, seed: int, rows: int, placement: Placement, workers: int):
        self.name, self.corpus, self.every, self.task, self.placement = name, corpus, every, task, placement
        self.parts = corpus.named()
        # Each source by itself, so that its figures are those that it would have alone.
        single = {source: part for source, part in self.parts.items() if not part.members}
        self.loaders = {source: held_out_loader(task, part, seed, rows, placement, workers) for source, part in single.items()}
        self.evaluated_at = -1

    def figures(self, device: torch.device) -> dict[str, Any]:
        """Figures over the whole set, equal on every rank; in a mixture over each source too, as `eval_<source>_…`.

        Those of a named set are `eval_<name>_…` as well; of the run's own data `eval_loss`, `eval_<term>_loss` and the task's metrics.
        """
        counted = {source: counts(self.placement, self.task, loader, device) for source, loader in self.loaders.items()}
        found: dict[str, Any] = {}
        for group, part in self.parts.items():
            mine = [pair for source, pair in counted.items() if not group or f"{source}.".startswith(f"{group}.")]
            sums = {key: sum(one[key] for one, _ in mine) for key in mine[0][0]}
            targets = {term: sum(one[term] for _, one in mine) for term in mine[0][1]}
            figures = losses(self.task, sums, targets) | self.task.metrics(sums, targets, part)
            name = ".".join(filter(None, (self.name, group)))
            found |= {f"eval_{name}_{key.removeprefix('eval_')}" if name else key: value for key, value in figures.items()}
        return found


def held_outs(config: Config, run: RunDir, corpus: Corpus, task: Task, rows_at_once: int, placement: Placement) -> list[HeldOut]:
    """All that a run is evaluated on: the held-out part of its data, then its named sets."""
    paths = run.placement.get("evals", {})
    found = [("", corpus, config.eval_every)]
    found += [(one.name, open_corpus(**paths[one.name]), one.every or config.eval_every) for one in config.eval_sets]
    return [HeldOut(*one, task, config.seed, rows_at_once, placement, config.data.workers) for one in found]


def held_out_loader(task: Task, corpus: Corpus, seed: int, rows_at_once: int, placement: Placement, workers: int) -> Loader:
    """The held-out rows in the table's order. Every rank has the same number of micro-batches, some perhaps without targets."""
    split = corpus.split("eval")
    return Loader(
        task=task,
        split=split,
        order=Order(seed, len(split.rows), shuffle=False),
        batches=Batches(len(split.rows), rows_at_once * placement.data_size),
        micro_batch=rows_at_once,
        data_rank=placement.data_rank,
        data_size=placement.data_size,
        workers=workers,
    )


def counts(placement: Placement, task: Task, loader: Loader, device: torch.device) -> tuple[dict[str, float], dict[str, int]]:
    """What the module returns, summed over all samples and ranks, and the number of targets of each term."""
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
    return dict(zip(names, total.tolist(), strict=True)), targets


def losses(task: Task, sums: dict[str, float], targets: dict[str, int]) -> dict[str, float]:
    """`eval_loss`, the objective, and where it has several terms each as `eval_<term>_loss`."""
    by_term = {term: sums[term] / max(1, targets[term]) for term in task.terms}
    figures = {"eval_loss": sum(weight * by_term[term] for term, weight in task.terms.items())}
    if len(by_term) > 1:
        figures |= {f"eval_{term}_loss": loss for term, loss in by_term.items()}
    return figures
