"""Adapters after the attention and the feed-forward layer of every block (Houlsby et al. 2019)."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from trainer.adapters import Adapter
from trainer.choices import ConfigError, choice, identity, require_positive

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ACTIVATIONS = ("gelu", "relu", "silu", "tanh")


@choice
class Bottleneck(Adapter):
    """Adapters: a narrow layer behind attention and feed-forward, added to what they give (https://arxiv.org/abs/1902.00751)."""

    name: str = "bottleneck"
    size: int = identity(64, help="width of the narrow layer")
    activation: str = identity("gelu", help="gelu | relu | silu | tanh")
    beside: list[str] | None = identity(
        None, help="parameters of the model that are trained too: patterns of names; null: those it has no values for, such as a new head"
    )

    def check(self) -> None:
        require_positive(self, "size")
        if self.activation not in _ACTIVATIONS:
            raise ConfigError(f"adapter.activation: {self.activation!r}; allowed: {', '.join(_ACTIVATIONS)}")

    def adapt(self, model: PreTrainedModel, lacking: Collection[str] = ()) -> None:
        from trainer.adapters.injecting import train_beside
        from trainer.adapters.narrow import put_behind

        put_behind(model, self.size, self.activation)
        train_beside(model, self.beside, lacking)
