"""Shardloom: train BERT- and GPT-family models; what is computed is separate from where.

As a library:

    from trainer import compose, train
    run = train(compose("experiment=quickstart"))
    print(run.metrics["eval_loss"], run.path)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.composition import compose
    from trainer.front_door import train

__all__ = ["compose", "train"]


def __getattr__(name: str) -> Any:
    # Imported on first use, so that a rank or `--help` does not pay for Hydra.
    if name == "compose":
        from trainer.composition import compose

        return compose
    if name == "train":
        from trainer.front_door import train

        return train
    raise AttributeError(f"module 'trainer' has no attribute {name!r}")
