"""nanoGPT's train.py as its users run it: a process of its own, its data format, settings on its command line, its log read.

NANOGPT names a checkout of https://github.com/karpathy/nanoGPT; nothing of it is in this repository. It draws blocks of text at random
and initialises by its own numbers, so its losses are near ours, not the same; and its log has wall time alone.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pace import Pace
from benchmarks.peers.rows import Data
from trainer.config import Config

_LINE = re.compile(r"^iter (\d+): loss ([\d.]+|nan), time ([\d.]+)ms", re.MULTILINE)
# Of the stream, what it may draw from; its ids are of two bytes.
_TOKENS = 20_000_000


def why_not(config: Config) -> str | None:
    """What keeps it from being run here; None: nothing."""
    if config.task.name != "clm" or config.model.name != "gpt2":
        return "it trains GPT-2 only"
    if not os.environ.get("NANOGPT"):
        return "NANOGPT names no checkout"
    return None if (Path(os.environ["NANOGPT"]) / "train.py").exists() else f"{os.environ['NANOGPT']} has no train.py"


def train(config: Config, data: Data, folder: Path, warm: int = 1) -> Pace:
    """The whole budget; the pace of the steps after the first `warm`, by its log. CPU time is not known: wall time stands for it."""
    folder.mkdir(parents=True)
    write(data, folder)
    command = [sys.executable, "train.py", *(f"--{key}={value}" for key, value in settings(config, folder).items())]
    done = subprocess.run(command, cwd=os.environ["NANOGPT"], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"train.py: exit code {done.returncode}\n{done.stderr[-1500:]}")
    return read(done.stdout, warm)


def write(data: Data, folder: Path) -> None:
    """train.bin, val.bin, and the size of the vocabulary where train.py reads it."""
    corpus = data.open()
    split = corpus.split("train")
    tokens = split.tokens.read(0, min(_TOKENS, len(split.tokens))).astype(np.uint16)
    tokens.tofile(folder / "train.bin")
    tokens[: 1 << 20].tofile(folder / "val.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": corpus.vocabulary.padded}))


def settings(config: Config, folder: Path) -> dict[str, Any]:
    """The same model, optimizer, schedule and batch in its words."""
    model, optim, steps = config.model, config.optim, config.steps or 0
    micro, on_cuda = int(config.micro_batch), torch.cuda.is_available()
    found = {
        "dataset": folder,
        "out_dir": folder / "out",
        "n_layer": model.layers,  # type: ignore[attr-defined]
        "n_head": model.heads,  # type: ignore[attr-defined]
        "n_embd": model.hidden,  # type: ignore[attr-defined]
        "block_size": config.sequence_length,
        "bias": True,
        "dropout": 0.0,
        "batch_size": micro,
        "gradient_accumulation_steps": config.global_batch // micro,
        "learning_rate": float(optim.lr),  # type: ignore[attr-defined]
        "beta1": float(optim.beta1),  # type: ignore[attr-defined]
        "beta2": float(optim.beta2),  # type: ignore[attr-defined]
        "weight_decay": float(optim.weight_decay),  # type: ignore[attr-defined]
        "grad_clip": float(optim.max_norm or 0.0),
        "max_iters": steps - 1,
        "warmup_iters": 0,
        "lr_decay_iters": steps,
        "min_lr": 0.0,
        # It evaluates before its first step whatever is said; so, on one batch.
        "eval_interval": 10**9,
        "eval_iters": 1,
        "log_interval": 1,
        "device": "cuda" if on_cuda else "cpu",
        "dtype": "bfloat16" if config.precision.autocast else "float32",
        "compile": on_cuda,
    }
    return found


def read(log: str, warm: int) -> Pace:
    """Its log: a line an iteration, the first one numbered 0."""
    lines = _LINE.findall(log)
    if len(lines) <= warm:
        raise RuntimeError(f"train.py logged {len(lines)} iterations\n{log[-1500:]}")
    seconds = sum(float(time) for _, _, time in lines[warm:]) / 1000 / (len(lines) - warm)
    return Pace(seconds, seconds, [float(loss) for _, loss, _ in lines])
