"""transformers' Trainer as its users run it: its own optimizer, schedule, data loader and logging, set by TrainingArguments alone."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.pace import Pace, Stopwatch
from benchmarks.peers.rows import Data, Samples, build_model, pad
from trainer.config import Config


class _Marks(TrainerCallback):
    """When the first `warm` steps are done, and when training is."""

    def __init__(self, watch: Stopwatch, warm: int):
        self.watch, self.warm = watch, warm

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.warm:
            self.watch.begin()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.watch.end()


def pace(config: Config, data: Data, warm: int = 1, **arguments: Any) -> Pace:
    """A transformers model on padded batches. arguments: further TrainingArguments."""
    return train(config, build_model(config, data), Samples(config, data), pad, warm, **arguments)


def train(
    config: Config, model: nn.Module, dataset: Dataset[Any], collate: Callable[[list[Any]], Any], warm: int = 1, **arguments: Any
) -> Pace:
    """`Trainer.train` over the whole budget, in the order of the data set; the pace after the first `warm` steps."""
    optim, schedule = config.optim, config.schedule
    assert schedule.name == "cosine" and schedule.warmup == 0 and schedule.min_factor == 0, "Trainer's warm-up starts at 0, ours above"  # type: ignore[attr-defined]
    watch = Stopwatch()
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder,
            "max_steps": config.steps,
            "per_device_train_batch_size": config.global_batch,
            "train_sampling_strategy": "sequential",
            "learning_rate": optim.lr,  # type: ignore[attr-defined]
            "adam_beta1": optim.beta1,  # type: ignore[attr-defined]
            "adam_beta2": optim.beta2,  # type: ignore[attr-defined]
            "adam_epsilon": optim.eps,  # type: ignore[attr-defined]
            "weight_decay": optim.weight_decay,  # type: ignore[attr-defined]
            "max_grad_norm": optim.max_norm,
            "lr_scheduler_type": "cosine",
            "logging_steps": config.log_every,
            "seed": config.seed,
            "bf16": config.precision.autocast is not None,
            "use_cpu": not torch.cuda.is_available(),
            # What it would also do, and what costs it time, but is not the loop.
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "remove_unused_columns": False,
        }
        trainer = Trainer(
            model=model,
            args=TrainingArguments(**settings | arguments),
            train_dataset=dataset,
            data_collator=collate,
            callbacks=[_Marks(watch, warm)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return watch.pace((config.steps or 0) - warm, losses)
