"""Low-rank adaptation: a product of two narrow matrices beside a frozen one (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.adapters import Adapter
from trainer.choices import ConfigError, choice, identity, require_positive, require_share

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel


@dataclass
class Injected(Adapter):
    """Layers of PEFT around layers of the model."""

    beside: list[str] | None = identity(
        None, help="parameters of the model that are trained too: patterns of names; null: those it has no values for, such as a new head"
    )

    def adapt(self, model: PreTrainedModel, lacking: Collection[str] = ()) -> None:
        from trainer.adapters.injecting import train_beside

        self.put(model, self.settings(model))
        train_beside(model, self.beside, lacking)

    def put(self, model: PreTrainedModel, settings: PeftConfig) -> None:
        """Put the layers into the model."""
        from trainer.adapters.injecting import inject

        inject(model, settings)

    def settings(self, model: PreTrainedModel) -> PeftConfig:
        """PEFT's own configuration."""
        raise NotImplementedError


@dataclass
class Targeted(Injected):
    """Layers of PEFT around those layers of the model that are named."""

    targets: Any = identity(None, help="layers by their last names; all: every linear one but the head; null: PEFT's for the architecture")

    def check(self) -> None:
        named = isinstance(self.targets, (list, tuple)) and self.targets and all(isinstance(one, str) for one in self.targets)
        if self.targets is not None and self.targets != "all" and not named:
            raise ConfigError(f"adapter.targets: {self.targets!r}; allowed: null, all, or names of layers, e.g. 'adapter.targets=[c_attn]'")


@choice
class Lora(Targeted):
    """LoRA: W + alpha/rank × B A, of which B and A are trained; B begins at zero."""

    name: str = "lora"
    rank: int = identity(8, help="rows of A and columns of B")
    alpha: float = identity(16.0, help="scale of the product, which is divided by the rank")
    dropout: float = identity(0.0, help="of what goes into A; 0 keeps the curve the same at any number of devices")
    bias: str = identity("none", help="which biases of the model are trained too: none | all | lora_only (of adapted layers)")
    rslora: bool = identity(False, help="divide by the rank's root instead (https://arxiv.org/abs/2312.03732)")

    merges: ClassVar[bool] = True
    decomposed: ClassVar[bool] = False

    def check(self) -> None:
        super().check()
        require_positive(self, "rank", "alpha")
        require_share(self, "dropout")
        if self.bias not in ("none", "all", "lora_only"):
            raise ConfigError(f"adapter.bias: {self.bias!r}; allowed: none, all, lora_only")

    def settings(self, model: PreTrainedModel) -> PeftConfig:
        from peft import LoraConfig
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

        from trainer.adapters.injecting import targets_of

        return LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            bias=self.bias,  # type: ignore[arg-type]
            use_rslora=self.rslora,
            use_dora=self.decomposed,
            target_modules=targets_of(model, self.targets, KNOWN),
        )


@choice
class Dora(Lora):
    """DoRA: LoRA of a weight's directions, and its magnitudes beside (Liu et al. 2024, https://arxiv.org/abs/2402.09353)."""

    name: str = "dora"
    decomposed: ClassVar[bool] = True
