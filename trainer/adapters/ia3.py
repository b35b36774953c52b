"""Learned scales of keys, values and of what goes into the second half of a feed-forward layer (Liu et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trainer.adapters.lora import Injected
from trainer.choices import ConfigError, choice

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

# Of families that PEFT has no defaults for: what is scaled, and which of it at its entry.
_LAYERS = {"modernbert": (["Wqkv", "mlp.Wo"], ["mlp.Wo"]), "olmo2": (["k_proj", "v_proj", "down_proj"], ["down_proj"])}


@choice
class IA3(Injected):
    """(IA)³: vectors that scale what layers give, the fewest parameters of all (https://arxiv.org/abs/2205.05638)."""

    name: str = "ia3"

    merges: ClassVar[bool] = True

    def settings(self, model: PreTrainedModel) -> PeftConfig:
        from peft import IA3Config
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as INNER
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as KNOWN

        family = model.config.model_type
        if family not in KNOWN and family not in _LAYERS:
            raise ConfigError(
                f"adapter=ia3: which layers of a {family} to scale is not known; known: {', '.join(sorted({*KNOWN, *_LAYERS}))}"
            )
        scaled, inner = _LAYERS.get(family) or (KNOWN[family], INNER[family])
        return IA3Config(target_modules=scaled, feedforward_modules=inner)
