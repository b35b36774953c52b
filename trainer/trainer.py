"""One rank's part of a run: build, resume, loop. The only training loop.

    build     data and task → module without values → placement on the devices, which fills it and proves itself
    resume    newest good checkpoint → state; the position in the data is one integer
    loop      a step = one global batch: micro-batches → backward → finish; then log, evaluate, save where due

What happens at a step is a visible line of `Training.loop`; there are no callbacks.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import time
from collections.abc import Mapping
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch

from trainer.checkpoint.store import Snapshot
from trainer.choices import ConfigError
from trainer.compiling import compiles, notice
from trainer.config import Config, digest, set_of
from trainer.data.batches import Batches, batches_of
from trainer.data.corpus import open_corpus
from trainer.data.loading import Loader, Step, on_device
from trainer.data.order import Order
from trainer.distributed import World
from trainer.early_stop import Watched
from trainer.evaluation import HeldOut, held_outs
from trainer.export import Form, export
from trainer.initial import counts_of, start
from trainer.metrics import Meter, useful_seconds
from trainer.mfu import device_name, device_peak, work_of
from trainer.models.activations import fuse_activations
from trainer.models.compiled import compile_blocks
from trainer.models.heads import chunk_head
from trainer.models.recompute import recompute_blocks
from trainer.process import no_garbage_collection
from trainer.profiling import profiling
from trainer.run import RunDir
from trainer.sampling import samples
from trainer.saves import Saves, open_latest
from trainer.settings import NanPolicy
from trainer.strategies.proof import prove
from trainer.streams import seed_all
from trainer.tracking import Trackers, jsonl, summary
from trainer.versions import versions

if TYPE_CHECKING:
    from trainer.checkpoint.opening import Opened
    from trainer.survival.stop import Stop


class Outcome(Enum):
    """How a rank's part ended."""

    finished = "finished"
    stopped = "stopped"
    halted = "halted"


def objective(losses: Mapping[str, torch.Tensor], weights: Mapping[str, float], targets: Mapping[str, int]) -> torch.Tensor:
    """Σ over terms of weight × (sum of losses ÷ targets of the whole global batch): this micro-batch's share, a scalar."""
    # A term without any target in the global batch still enters, at zero, so that every parameter has a gradient.
    shares = [losses[term] * (weight / max(1, targets[term])) for term, weight in weights.items()]
    return functools.reduce(torch.Tensor.add, shares)


class Training:
    """A run on this rank."""

    def __init__(self, config: Config, world: World, run: RunDir, stop: Stop):
        self.config, self.world, self.run, self.stop = config, world, run, stop
        self.task = config.task
        self.step = 0  # steps consumed, dropped ones included
        self.position = 0  # samples consumed: the whole data state
        self.tokens = 0
        self.spans: dict[int, tuple[int, int]] = {}  # positions of the steps since the last log line
        self.last: dict[str, Any] = {}
        self.evaluated: dict[str, Any] = {}
        self.measured: dict[str, Any] = {}  # of the weights as they are now, held-out figures as eval_…
        opened = open_latest(config, run, world)
        self._build(opened)
        self._resume(opened)

    # -- build --------------------------------------------------------------------------------------------------------------------

    def _build(self, opened: Opened | None) -> None:
        config, world = self.config, self.world
        resolved = self.run.placement
        self.corpus = open_corpus(resolved["corpus"], resolved["rows"], config)
        self.micro_batch = int(resolved["micro_batch"])
        begun = start(config, self.corpus, world, opened)
        module, self.base, self.teacher = begun.module, begun.base, begun.teacher
        uncompiled = notice(config, world.device.type)
        for line in (*begun.notices, *filter(None, [uncompiled])) if world.leads else ():
            print(line, flush=True)
        self.counts = counts_of(module.model.parameters())  # type: ignore[union-attr]
        teacher = module.teacher.model if config.teacher.teaches else None  # type: ignore[union-attr]
        self.work = work_of(module.model, list(self.task.terms), teacher)  # type: ignore[arg-type]
        full = (config.sequence_length,) * self.micro_batch
        fuse_activations(module, config.compile)
        self.compiler = compile_blocks(module, config.compile, full) if compiles(config, world.device.type) else None
        recompute_blocks(module, config.recompute)
        chunk_head(module, config.head)
        config.precision.prepare(module)
        self.placement = config.strategy.place(module, begun.weights, config.adapter.watched(config.optim.build), config, world)
        module.train()

        split = self.corpus.split("train")
        self.loader = Loader(
            task=self.task,
            split=split,
            order=split.order(config.seed),
            batches=batches_of(config, split),
            micro_batch=self.micro_batch,
            data_rank=self.placement.data_rank,
            data_size=self.placement.data_size,
            workers=config.data.workers,
            pin=world.device.type == "cuda",
            teacher=config.teacher,
        )
        self.steps = len(self.loader)
        watched_set = set_of(config, config.early_stop.figure or "")
        self.watched = Watched(config.early_stop, f"eval_{watched_set.name}_loss" if watched_set else "eval_loss")
        self.held_outs = held_outs(config, self.run, self.corpus, self.task, self.micro_batch, self.placement)
        self._prove()

    def _prove(self) -> None:
        """Throwaway backwards on the same rows on every rank: the placement shows that it averages, and DDP settles its buckets."""
        first = self.loader.split.rows
        order, teacher = Order(0, len(first), shuffle=False), self.config.teacher
        # A whole micro-batch where it is compiled, so that what is proven is what trains, and nothing is compiled in step 1.
        count = min(max(self.task.rehearsed, self.micro_batch if self.compiler else 1), len(first))
        rehearsal = Loader(self.task, self.loader.split, order, Batches(count, count), count, teacher=teacher).step(0)
        batch = rehearsal.micro_batches[0].to(self.world.device)

        def backward(scale: float) -> None:
            losses = self.placement.module(batch)
            self.placement.accumulate(objective(losses, self.config.weights, rehearsal.targets) * scale, last=True)

        proof = prove(self.placement, backward, self.world)
        if self.world.leads:
            print("proved before step 1: gradients are averaged over the ranks, and each holds", *proof.lines(), sep="\n  ", flush=True)
            self.run.event("proof", attempt=self.world.attempt, tables=proof.tables)
            self.run.event("environment", attempt=self.world.attempt, device=device_name(self.world.device), versions=versions())
        if self.compiler:
            self.compiler.settle()
            if self.world.leads:
                self.run.event("compiled", attempt=self.world.attempt, **self.compiler.figures())

    # -- resume -------------------------------------------------------------------------------------------------------------------

    def _resume(self, opened: Opened | None) -> None:
        config, world = self.config, self.world
        if opened is not None:
            self.placement.load(opened.read)
            self.step, self.position, self.tokens = (int(opened.state[key]) for key in ("step", "position", "tokens"))
            self.watched.load(opened.state.get("early_stop"))
            batches = self.loader.batches
            if batches.total < self.position:
                raise ConfigError(
                    f"{self.run.path}: {self.position} samples are consumed, but the budget is {batches.total}; give a larger one"
                )
            # Also after an extension of a run whose last batch was short: what is left decides, not step × global batch.
            self.steps = self.step + batches.left(self.position)
        self.saves = Saves(config, self.run, world, self._event, opened)
        events = self.run.events()
        self.meter = Meter(
            config.weights,
            config.log_every,
            world,
            work=self.work,
            peak=device_peak(world.device, config.device.peak_tflops),  # type: ignore[attr-defined]
            tokens=self.tokens,
            samples=self.position,
            started=events[0]["time"] if events else time.time(),
            useful_seconds=useful_seconds(jsonl.read(self.run / "metrics.jsonl"), self.step),
        )
        self.trackers = Trackers(config, self.run.path, world, steps=self.steps, step=self.step)
        began = {"resumed_at": self.step} if opened is not None else {"files": self.run.placement.get("files", "")}
        self._event("start", world_size=world.size, strategy=config.strategy.name, **began, **self.counts, digest=digest(config))
        if opened is not None and opened.problems:
            self._event("fallback", used=opened.path.name, problems=opened.problems)

    # -- loop ---------------------------------------------------------------------------------------------------------------------

    def loop(self) -> Outcome:
        """Train to the budget, or until a held-out figure gets no better, or to an agreed stop, or to a halt."""
        config, placement, meter, weights = self.config, self.placement, self.meter, self.config.weights
        data = on_device(self.loader.steps(self.position), self.world.device)
        profiled = profiling(config.profile, self.run.path, self.world, meter.paused, self.trackers.message)  # type: ignore[arg-type]
        with no_garbage_collection(), profiled as profiler:
            while self.step < self.steps and not self.watched.spent:
                if self.stop.should_stop(self.step + 1):
                    if not self._log():
                        return self._halted()
                    self._save(last=True)
                    self._event("stop", reason=self.stop.reason, **self.loader.passes(self.position))
                    return Outcome.stopped
                profiler.at(self.step + 1)
                with meter.waiting():
                    step = next(data)

                for number, batch in enumerate(step.micro_batches):
                    seed_all(config.seed, "step", self.step, number, placement.data_rank)
                    losses = placement.module(batch)
                    placement.accumulate(objective(losses, weights, step.targets), last=number == len(step.micro_batches) - 1)
                    meter.add(losses, step.targets, batch)
                norm, applied = placement.finish(config.schedule.factor(self.step, self.steps), config.optim.max_norm)
                placement.allocate(config.adapter.budget(self.step + 1, self.steps))

                self._consume(step, norm, applied)
                self.trackers.advance(self.step)
                self.saves.tell()
                saving = self._due(config.save_every)
                # Nothing is saved that has not been looked at: a checkpoint behind a step that halts the run would hide it.
                if (self._due(config.log_every) or saving) and not self._log():
                    return self._halted()
                for held_out in self.held_outs:
                    if held_out.every and self._due(held_out.every):
                        self._evaluate(held_out)
                self.watched.look(self.step, self.measured)
                if self.watched.spent:
                    if not self._log():
                        return self._halted()
                    self._event("early_stop", reason=self.watched.reason)
                if saving:
                    self._save()
            self.saves.wait()
        return Outcome.finished

    def _consume(self, step: Step, norm: torch.Tensor, applied: torch.Tensor) -> None:
        """A dropped step has consumed its batch and its slot of the schedule like any other."""
        self.step += 1
        self.position = step.stop
        self.spans[self.step] = (step.start, step.stop)
        self.tokens += step.tokens
        self.measured = {}
        self.meter.close(self.step, norm, applied, step.tokens, step.samples)
        if self.config.tracking.ledger:  # type: ignore[attr-defined]
            folder = self.run / "ledger"
            folder.mkdir(exist_ok=True)
            rows = self.loader.split.rows.named(step.mine)
            line = {"step": self.step, "attempt": self.world.attempt, "start": step.start, "stop": step.stop, "rows": rows}
            with (folder / f"rank-{self.world.rank:05d}.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")

    def _due(self, every: int) -> bool:
        return self.step % every == 0 or self.step == self.steps

    def _log(self) -> bool:
        """Read the interval's figures off the device and write a line. False: a step was not finite and the policy is to halt."""
        steps = self.meter.flush()
        if not steps:
            return True
        # What refers to itself may hold memory of the device. Here every rank has just waited for all others.
        gc.collect()
        self.last = steps[-1] | self.meter.speed() | self.saves.figures()
        self.measured["loss"] = self.last["loss"]
        if self.compiler and (complaint := self.compiler.complaint()):
            self._event("recompiling", complaint=complaint, **self.compiler.figures())
        self.last["learning_rate"] = self.config.optim.lr * self.config.schedule.factor(self.step - 1, self.steps)  # type: ignore[attr-defined]
        self.trackers.log(self.step, {key: value for key, value in self.last.items() if key not in ("step", "applied")})
        dropped = [figures["step"] for figures in steps if not figures["applied"]]
        for number in dropped:
            rows, _ = self.loader.order.at(*self.spans[number])
            policy = self.config.survival.nan  # type: ignore[attr-defined]
            passes = self.loader.passes(self.spans[number][0])
            self._event("nan", at=number, policy=policy.value, rows=self.loader.split.rows.named(rows), **passes)
        self.spans.clear()
        return not (dropped and self.config.survival.nan is NanPolicy.halt)  # type: ignore[attr-defined]

    def _evaluate(self, held_out: HeldOut) -> None:
        with self.meter.paused(), self._averaged():
            figures = held_out.figures(self.world.device)
            if self.world.leads:
                held_out.write_tables(self.run, self.step)
            if self.config.tracking.samples and not held_out.name and not self.corpus.examples:  # type: ignore[attr-defined]
                self.trackers.samples(self.step, samples(self.placement, self.corpus, self.config, self.world))
        held_out.evaluated_at = self.step
        self.evaluated |= figures
        named = {key if key.startswith("eval_") else f"eval_{key}": value for key, value in figures.items()}
        self.measured |= named
        self.trackers.log(self.step, named)

    def _averaged(self) -> contextlib.AbstractContextManager[None]:
        """What is evaluated are the moving averages of the weights, where they are kept and asked for."""
        return self.placement.averaged() if self.config.optim.ema.shown else contextlib.nullcontext()

    def _save(self, last: bool = False) -> None:
        """Write a checkpoint of what the loop has consumed so far, unless that is saved already. last: and wait until it is committed."""
        with self.meter.paused():
            self.saves.save(self.step, self._snapshot, last)

    def _snapshot(self) -> Snapshot:
        state: dict[str, Any] = {"step": self.step, "position": self.position, "tokens": self.tokens}
        if self.base is not None:
            state["base"] = self.base.told()
        if self.teacher is not None:
            state["teacher"] = self.teacher
        if self.watched.rules.figure is not None:
            state["early_stop"] = self.watched.told()
        return self.saves.snapshot(self.placement, state, self.measured)

    def _halted(self) -> Outcome:
        """What is being written is good: it was looked at before it was saved."""
        self.saves.wait()
        return Outcome.halted

    def _event(self, kind: str, **fields: Any) -> None:
        if self.world.leads:
            step = fields.pop("step", self.step)
            self.run.event(kind, step=step, attempt=self.world.attempt, rank=self.world.rank, **fields)
            self.trackers.event(kind, step, **fields)

    # -- end ----------------------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """After the budget, or an early stop: the last evaluation, checkpoint, `model/` and summary."""
        for held_out in self.held_outs:
            if held_out.evaluated_at != self.step:
                self._evaluate(held_out)
        self._save(last=True)
        saved = self.saves.ending(self.step)
        if saved.step != self.step:
            self._go_back(saved)
        if not self.world.leads:
            return
        export(self.run, saved, self.run / "model", Form(averages=self.config.optim.ema.shown))
        passes = self.loader.passes(self.position)
        self._event("finish", **passes)
        stalls = [event.get("stall_seconds", 0.0) for event in self.run.events("checkpoint")]
        figures = summary.write(
            self.run.path,
            **(
                self.evaluated
                | self.task.baselines(self.corpus)
                | passes
                | {"model_step": saved.step, "samples": self.position, "loss": self.last.get("loss"), "digest": digest(self.config)}
                | self.counts
                | (self.compiler.figures() if self.compiler else {})
                | {"world_size": self.world.size, "strategy": self.config.strategy.name, "checkpoint_stall_seconds": sum(stalls)}
            ),
        )
        self.trackers.finish(figures)

    def _go_back(self, opened: Opened) -> None:
        """The final figures are those of an earlier checkpoint's weights, on every set; the log keeps to the steps that were trained."""
        self.placement.load(opened.read)
        self._event("best", at=opened.step, figure=self.config.checkpoint.best)  # type: ignore[attr-defined]
        with self._averaged():
            for held_out in self.held_outs:
                self.evaluated |= held_out.figures(self.world.device)
                if self.world.leads:
                    held_out.write_tables(self.run, opened.step)
