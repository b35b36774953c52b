"""transformers' Trainer as its users run it: its own optimizer, schedule, data loader and logging, set by TrainingArguments alone."""

from __future__ import annotations

import logging
import tempfile
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from benchmarks.pace import Pace, Stopwatch
from benchmarks.peers.rows import Collate, Items
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


def train(config: Config, model: nn.Module, items: Items, collate: Collate, warm: int = 1, **arguments: Any) -> Pace:
    """`Trainer.train` over the whole budget, in the order of the items; the pace after the first `warm` steps.

    arguments: further TrainingArguments.
    """
    optim, schedule = config.optim, config.schedule
    assert schedule.name == "cosine" and schedule.warmup == 0 and schedule.min_factor == 0, "Trainer's warm-up starts at 0, ours above"  # type: ignore[attr-defined]
    watch = Stopwatch()
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "output_dir": folder,
            "max_steps": config.steps,
            "per_device_train_batch_size": int(config.micro_batch),
            "gradient_accumulation_steps": config.global_batch // int(config.micro_batch),
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
            train_dataset=items,  # type: ignore[arg-type]
            data_collator=collate,
            callbacks=[_Marks(watch, warm)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    return watch.pace((config.steps or 0) - warm, losses)
