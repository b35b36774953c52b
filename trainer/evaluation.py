"""Evaluation: every held-out sample once, on any number of ranks."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray

from trainer.atomic import write_json
from trainer.data.batches import Batches
from trainer.data.corpus import Corpus, open_corpus
from trainer.data.loading import Loader
from trainer.data.order import Order
from trainer.data.tokenizer_files import load_tokenizer
from trainer.exchange import gather, spread
from trainer.strategies import Placement
from trainer.tasks import Task
from trainer.tasks.labelled import Labelled, Scored

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.run import RunDir


class HeldOut:
    """What is evaluated at the same steps: the held-out part of the run's own data, or a named set.

    name: "" for the run's own. every: steps between two evaluations, or None for the end only. loaders: of each source by its name.
    split: that of training can be looked at as well, afterwards.
    """

    def __init__(
        self, name: str, corpus: Corpus, every: int | None, task: Task, seed: int, rows: int, placement: Placement, workers: int,
        split: str = "eval",
    ):  # fmt: skip
        self.name, self.corpus, self.every, self.task, self.placement, self.split = name, corpus, every, task, placement, split
        self.parts = corpus.named()
        # Each source by itself, so that its figures are those that it would have alone.
        single = {source: part for source, part in self.parts.items() if not part.members}
        self.loaders = {source: held_out_loader(task, part, seed, rows, placement, workers, split) for source, part in single.items()}
        self.evaluated_at = -1
        # Of examples with labels, what the last evaluation found beside its figures, by the name of the set; on rank 0.
        self.tables: dict[str, Any] = {}

    def figures(self, device: torch.device) -> dict[str, Any]:
        """Figures over the whole set, equal on every rank; in a mixture over each source too, as `eval_<source>_…`.

        Those of a named set are `eval_<name>_…` as well; of the run's own data `eval_loss`, `eval_<term>_loss` and the task's metrics.
        """
        predicts = isinstance(self.task, Labelled)
        tokenizer = load_tokenizer(self.corpus.tokenizer_path) if predicts else None
        measured = {source: measure(self.placement, self.task, loader, device, tokenizer) for source, loader in self.loaders.items()}
        scored = {source: self._scored(source, one.predictions) for source, one in measured.items() if predicts}
        found: dict[str, Any] = {}
        for group, part in self.parts.items():
            mine = [source for source in measured if not group or f"{source}.".startswith(f"{group}.")]
            sums = {key: sum(measured[source].sums[key] for source in mine) for key in measured[mine[0]].sums}
            targets = {term: sum(measured[source].targets[term] for source in mine) for term in self.task.terms}
            name = ".".join(filter(None, (self.name, group)))
            figures = losses(self.task, sums, targets) | self.task.metrics(sums, targets, part)
            if isinstance(self.task, Labelled):
                figures |= self._score(name, [one for source in mine for one in scored[source]])
            found |= {f"eval_{name}_{key.removeprefix('eval_')}" if name else key: value for key, value in figures.items()}
        return found

    def write_tables(self, run: RunDir, step: int) -> None:
        """Keep what the last evaluation found beside its figures, such as figures by label: `evaluation/held_out.json` and by set."""
        for name, tables in self.tables.items():
            (run / "evaluation").mkdir(exist_ok=True)
            write_json(run / "evaluation" / f"{name or 'held_out'}.json", {"step": step, **tables})

    def _scored(self, source: str, predictions: dict[int, Any]) -> list[Scored]:
        """Every example of a source with the predictions of its rows; on rank 0 alone, which has gathered them."""
        gathered = {int(row): value for words in gather(json.dumps(predictions)) for row, value in json.loads(words).items()}
        if not gathered:
            return []
        split, by_example = self.loaders[source].split, defaultdict[int, list[Any]](list)
        for row in sorted(gathered):
            by_example[int(split.rows.pieces(row)[0, 1])].append(gathered[row])
        records = self.parts[source].records(self.split)
        return [Scored(records[number], found) for number, found in sorted(by_example.items())]

    def _score(self, name: str, scored: list[Scored]) -> dict[str, Any]:
        """Figures by rank 0, told to all."""
        assert isinstance(self.task, Labelled)
        words = ""
        if scored:
            score = self.task.score(scored, self.corpus.learned)
            self.tables[name], words = score.tables, json.dumps(score.figures)
        found: dict[str, Any] = json.loads(spread(words))
        return found


def held_outs(config: Config, run: RunDir, corpus: Corpus, task: Task, rows_at_once: int, placement: Placement) -> list[HeldOut]:
    """All that a run is evaluated on: the held-out part of its data, then its named sets."""
    paths = run.placement.get("evals", {})
    found = [("", corpus, config.eval_every)]
    found += [(one.name, open_corpus(**paths[one.name]), one.every or config.eval_every) for one in config.eval_sets]
    return [HeldOut(*one, task, config.seed, rows_at_once, placement, config.data.workers) for one in found]


def held_out_loader(
    task: Task, corpus: Corpus, seed: int, rows_at_once: int, placement: Placement, workers: int, split: str = "eval"
) -> Loader:
    """The held-out rows in the table's order. Every rank has the same number of micro-batches, some perhaps without targets."""
    held = corpus.split(split)
    return Loader(
        task=task,
        split=held,
        order=Order(seed, len(held.rows), shuffle=False),
        batches=Batches(len(held.rows), rows_at_once * placement.data_size),
        micro_batch=rows_at_once,
        data_rank=placement.data_rank,
        data_size=placement.data_size,
        workers=workers,
    )


@dataclass(frozen=True)
class Measured:
    """What a module returned: sums over all samples and ranks, targets of each term, and this rank's predictions by row."""

    sums: dict[str, float]
    targets: dict[str, int]
    predictions: dict[int, Any]


def measure(placement: Placement, task: Task, loader: Loader, device: torch.device, tokenizer: Any = None) -> Measured:
    """Evaluate a module on all samples of a loader; entered by every rank. tokenizer: what reads the predictions of examples."""
    module = placement.module
    was_training = module.training
    module.eval()
    names: list[str] = []
    total: torch.Tensor | None = None
    targets = dict.fromkeys(task.terms, 0)
    predictions: dict[int, Any] = {}
    try:
        with torch.no_grad():
            for step in loader.steps():
                for term in targets:
                    targets[term] += step.targets[term]
                for batch in step.micro_batches:
                    results = module(batch.to(device))
                    names = [name for name, value in results.items() if value.dim() == 0]
                    values = torch.stack([results[name].double() for name in names])
                    total = values if total is None else total + values
                    if isinstance(task, Labelled) and batch.rows:
                        predictions.update(zip(batch.rows, task.predictions(arrays(results), tokenizer), strict=True))
    finally:
        module.train(was_training)
    assert total is not None, "prepare refuses an empty held-out split"
    if placement.data_size > 1:
        dist.all_reduce(total)
    return Measured(dict(zip(names, total.tolist(), strict=True)), targets, predictions)


def arrays(results: dict[str, torch.Tensor]) -> dict[str, NDArray[Any]]:
    """What a module returned in evaluation mode that is no sum."""
    return {name: (value.float() if value.is_floating_point() else value).cpu().numpy() for name, value in results.items() if value.dim()}


def losses(task: Task, sums: dict[str, float], targets: dict[str, int]) -> dict[str, float]:
    """`eval_loss`, the objective, and where it has several terms each as `eval_<term>_loss`."""
    by_term = {term: sums[term] / max(1, targets[term]) for term in task.terms}
    figures = {"eval_loss": sum(weight * by_term[term] for term, weight in task.terms.items())}
    if len(by_term) > 1:
        figures |= {f"eval_{term}_loss": loss for term, loss in by_term.items()}
    return figures
