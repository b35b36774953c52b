"""Runs that adapt the model of another, which is trained once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

from tests.loops import ready, single, training

LORA = ("adapter=lora", "optim.lr=1e-2", "adapter.targets=all")


def finish(path: Path) -> None:
    """Train to the budget, and write model/."""
    here = training(single(), path)
    here.loop()
    here.finish()


def pretrained(base: Path) -> tuple[str, ...]:
    """The model and the tokenizer of a finished run."""
    return (f"model.path={base}/model", "tokenizer=pretrained", f"tokenizer.path={base}/model")


def adapted(folder: Path, texts: Path, base: Path, *words: str, adapter: tuple[str, ...] = LORA, world: int = 1) -> Path:
    """A run made ready that adapts the model of another."""
    return ready(folder, texts, *pretrained(base), *adapter, *words, sizes=("model=pretrained",), world=world)
