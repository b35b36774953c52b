"""What is trained beside a model whose own parameters stay as they are: small layers inside of it, or nothing."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trainer.choices import Choice, choice

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from trainer.checkpoint.pieces import Read
    from trainer.config import Config
    from trainer.strategies import BuildOptimizer

CHOICES = ("lora", "ia3", "adalora", "bottleneck", "prompts", "qlora")


@dataclass(frozen=True)
class Budget:
    """Ranks that an adapted layer may keep in the mean; settled: those that it has, and no others."""

    ranks: float
    settled: bool = False


class Adapter(Choice, group="adapter"):
    """Small layers that are trained inside of a frozen model, or none."""

    # Whether a plain model computes the same, with other weights.
    merges: ClassVar[bool] = False

    @property
    def adapts(self) -> bool:
        """Whether there is something to train beside the model."""
        return True

    def adapt(self, model: PreTrainedModel, lacking: Collection[str] = ()) -> None:
        """Put the layers into a model, and freeze its own parameters. lacking: names of those that have no values yet, such as a new head.

        Raises ConfigError where the model has no place for them.
        """
        raise NotImplementedError

    def fits(self, model: PreTrainedModel, config: Config) -> None:
        """Raise ConfigError where it cannot be had with this network in this run; before launch."""

    def place(self, module: nn.Module, weights: Read, device: torch.device) -> None:
        """What of a module on meta is kept in another form than as parameters is put there, by strategies that keep it whole."""

    def watched(self, build: BuildOptimizer) -> BuildOptimizer:
        """What builds the optimizer, for which an adapter may keep state of its own."""
        return build

    def budget(self, step: int, steps: int) -> Budget | None:
        """What is left of the ranks after a step, a pure function of its number from 1; None: nothing changes."""
        return None

    def stored(self) -> Adapter:
        """What its file holds: all but what is needed for training alone."""
        return self


@choice
class NoAdapter(Adapter):
    """The model itself is trained."""

    name: str = "none"

    @property
    def adapts(self) -> bool:
        return False

    def adapt(self, model: PreTrainedModel, lacking: Collection[str] = ()) -> None:
        """Nothing."""
