"""The real loop on tiny models, in this process or on ranks of a pool: real text, prepared for real."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer import compose
from trainer.config import Config
from trainer.distributed import World
from trainer.front_door import make_ready
from trainer.run import RunDir, load_frozen

GPT = ("model.layers=1", "model.hidden=32", "model.heads=2")
BERT = ("model=bert_tiny", "task=mlm_nsp", *GPT)
_WORDS = ("alpha", "beta", "gamma", "delta", "tree", "leaf", "root", "stone", "water", "unlikely")


def write_texts(folder: Path, files: int = 30) -> Path:
    """Documents of quite different lengths."""
    draw = random.Random(0)
    for number in range(files):
        lines = (" ".join(draw.choice(_WORDS) for _ in range(draw.randint(2, 12))) + "." for _ in range(draw.randint(1, 25)))
        (folder / f"{number:02}.txt").write_text("\n".join(lines))
    return folder


def ready(folder: Path, texts: Path, *words: str, name: str = "run", world: int = 1, sizes: tuple[str, ...] = GPT) -> Path:
    """A run directory made ready by the front door, for ranks to train. sizes: of the model, if not given."""
    strategy = "strategy=single" if world == 1 else "strategy=ddp"
    given = words if any(word.startswith("strategy=") for word in words) else (strategy, *words)
    make_ready(composed(folder / name, texts, *given, sizes=sizes), RunDir(folder / name), world)
    return folder / name


def composed(path: Path, texts: Path, *words: str, sizes: tuple[str, ...] = GPT) -> Config:
    """The configuration of such a run in `path`."""
    shape = ["data=text", f"data.path={texts}/*.txt", "tokenizer.vocab_size=300", "sequence_length=32", "global_batch=8", "log_every=1"]
    kept = ["tracking.wandb=off", "tracking.ledger=true", "optim.lr=1e-3"]
    given = {word.split("=")[0] for word in words}
    given |= {"data.path"} if "data" in given else set()
    given |= {"tokenizer.vocab_size"} if "tokenizer" in given else set()
    defaults = [word for word in (*shape, *kept, "steps=6", "micro_batch=4", *sizes) if word.split("=")[0] not in given]
    if "epochs" in given:
        defaults.remove("steps=6")
    return compose(*defaults, *words, f"output_dir={path}")


class StopAfter:
    """Stops the loop after a step, and does something before each."""

    reason = "test"

    def __init__(self, last: int | None = None, before: Callable[[int], None] = lambda step: None):
        self.last, self.before = last, before

    def should_stop(self, next_step: int) -> bool:
        self.before(next_step)
        return self.last is not None and next_step > self.last


def training(world: World, path: str | Path, stop: StopAfter | None = None) -> Any:
    """A rank's part of the run, built and resumed."""
    from trainer.trainer import Training

    run = RunDir(path)
    return Training(load_frozen(run.config_path), world, run, stop or StopAfter())  # type: ignore[arg-type]


def train(world: World, path: str, last: int | None = None) -> dict[str, Any]:
    """Run the loop (to a step) and return the final weights by name."""
    here = training(world, path, StopAfter(last))
    here.loop()
    with here.placement.gathered() as module:
        return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def in_an_engine_of_its_own(work: Callable[..., Any], *given: Any) -> Any:
    """What `work` returns, in a process that runs several: Accelerate keeps the first engine's settings; a run has its own process."""
    from accelerate.state import AcceleratorState

    try:
        return work(*given)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


def single() -> World:
    """The world of `strategy=single` in this process."""
    import torch

    return World(0, 1, 0, 1, torch.device("cpu"))


def lines(path: Path, key: str = "loss") -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that have a key; of a step with several, the last."""
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return list({line["step"]: line for line in found if key in line}.values())


def losses(path: Path) -> list[float]:
    return [line["loss"] for line in lines(path)]


def ledger(path: Path) -> list[int]:
    """All rows that were consumed, over all ranks: step by step, sorted within a step."""
    found = [json.loads(line) for file in sorted((path / "ledger").iterdir()) for line in file.read_text().splitlines()]
    return [row for _, row in sorted((line["step"], row) for line in found for row in line["rows"])]
