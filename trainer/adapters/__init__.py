"""What is trained beside a model whose own parameters stay as they are: small layers inside of it, or nothing."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar

from trainer.choices import Choice, choice

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHOICES = ("lora", "ia3", "bottleneck")


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


@choice
class NoAdapter(Adapter):
    """The model itself is trained."""

    name: str = "none"

    @property
    def adapts(self) -> bool:
        return False

    def adapt(self, model: PreTrainedModel, lacking: Collection[str] = ()) -> None:
        """Nothing."""
