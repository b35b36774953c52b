"""LoRA whose ranks go where they matter: a budget of ranks for the whole model, which shrinks as it is trained (Zhang et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from trainer.adapters import Budget
from trainer.adapters.lora import Targeted
from trainer.choices import ConfigError, choice, identity, require_at_least, require_positive, require_share

if TYPE_CHECKING:
    from peft import PeftConfig
    from transformers import PreTrainedModel

    from trainer.strategies import BuildOptimizer


@choice
class AdaLora(Targeted):
    """AdaLoRA: W + alpha/rank × B Λ A; of all ranks the least important ones are zeroed (https://arxiv.org/abs/2303.10512)."""

    name: str = "adalora"
    rank: int = identity(12, help="rows of A and columns of B at first")
    target_rank: int = identity(8, help="ranks that a layer keeps in the mean")
    alpha: float = identity(32.0, help="scale of the product, which is divided by the rank at first")
    dropout: float = identity(0.0, help="of what goes into A; 0 keeps the curve the same at any number of devices")
    warmup: float = identity(0.1, help="share of the steps before ranks go")
    settling: float = identity(0.3, help="share of the steps at the end in which those that are left stay the same")
    every: int = identity(1, help="steps between two choices of the ranks that stay")
    sensitivity_decay: float = identity(0.85, help="of the moving average of |weight × gradient|")
    uncertainty_decay: float = identity(0.85, help="of the moving average of how far it is from its average")
    orthogonality: float = identity(0.5, help="weight of the distance of A Aᵀ and Bᵀ B from the identity")

    merges: ClassVar[bool] = True

    def check(self) -> None:
        super().check()
        require_positive(self, "rank", "target_rank", "alpha", "every")
        require_share(self, "dropout", "warmup", "settling", "sensitivity_decay", "uncertainty_decay")
        require_at_least(self, 0, "orthogonality")
        if self.target_rank >= self.rank:
            raise ConfigError(
                f"adapter.target_rank: {self.target_rank}; allowed: below adapter.rank={self.rank}, of which it is what is left"
            )
        if self.warmup + self.settling >= 1:
            raise ConfigError(
                f"adapter.warmup: {self.warmup} and adapter.settling: {self.settling} leave no step in which ranks go; "
                "allowed: shares that are less than 1 together"
            )

    def settings(self, model: PreTrainedModel) -> PeftConfig:
        from peft import AdaLoraConfig
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_ADALORA_TARGET_MODULES_MAPPING as KNOWN

        from trainer.adapters.injecting import targets_of

        return AdaLoraConfig(
            init_r=self.rank,
            target_r=self.target_rank,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            lora_dropout=self.dropout,
            beta1=self.sensitivity_decay,
            beta2=self.uncertainty_decay,
            orth_reg_weight=self.orthogonality,
            target_modules=targets_of(model, self.targets, KNOWN),
            # Read by PEFT's own loop alone; it has to be there.
            total_step=1,
        )

    def put(self, model: PreTrainedModel, settings: PeftConfig) -> None:
        from trainer.adapters.ranks import without_counts

        super().put(model, settings)
        without_counts(model)

    def watched(self, build: BuildOptimizer) -> BuildOptimizer:
        from trainer.adapters.ranks import watch

        def built(named: Any) -> Any:
            parameters = list(named)
            optimizer = build(iter(parameters))
            watch(optimizer, parameters, self.sensitivity_decay, self.uncertainty_decay, self.orthogonality)
            return optimizer

        return built

    def budget(self, step: int, steps: int) -> Budget | None:
        first, last = int(self.warmup * steps), steps - int(self.settling * steps)
        if step > last:
            return Budget(self.target_rank, settled=True)
        if step <= first or step % self.every and step != last:
            return None
        return Budget(self.target_rank + (self.rank - self.target_rank) * (1 - (step - first) / (last - first)) ** 3)
