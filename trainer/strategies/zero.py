"""ZeRO: moments, master weights and gradients partitioned over the ranks; DeepSpeed's engine, constructed by Accelerate and driven by us.

https://arxiv.org/abs/1910.02054. Written for any stage whose parameters stay whole; a further one is a class of three lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.choices import ConfigError, choice, placement
from trainer.strategies import Placement, Strategy

if TYPE_CHECKING:
    from torch import nn

    from trainer.checkpoint.pieces import Read
    from trainer.config import Config
    from trainer.distributed import World
    from trainer.strategies import BuildOptimizer


@dataclass
class Zero(Strategy):
    """A stage of ZeRO."""

    stage: ClassVar[int]
    options: dict[str, Any] = placement(default_factory=dict, help="keys of DeepSpeed's configuration that the framework does not name")

    def check(self) -> None:
        ours = engine_config(self.stage, None)
        for key, value in self.options.items():
            clash = sorted(set(value) & set(ours["zero_optimization"])) if key == "zero_optimization" else [key] if key in ours else []
            if clash:
                raise ConfigError(
                    f"strategy.options: {', '.join(clash)} is set by the framework, which rests on its value; remove it, "
                    "options is for keys of DeepSpeed's configuration that the framework does not name"
                )

    def place(self, module: nn.Module, weights: Read, build_optimizer: BuildOptimizer, config: Config, world: World) -> Placement:
        from trainer.models.deferred import materialise
        from trainer.strategies.partitioned import Partitioned, prepare_engine

        named = list(materialise(module, weights, world.device).named_parameters())
        settings = engine_config(self.stage, config.precision.autocast, self.options)
        engine = prepare_engine(module, build_optimizer(iter(named)), settings, world)
        return Partitioned(engine, module, named, world)


@choice
class Zero2(Zero):
    """Moments, masters and gradients partitioned; parameters whole on every device."""

    name: str = "zero2"
    stage: ClassVar[int] = 2


def engine_config(stage: int, autocast: str | None, options: dict[str, Any] | None = None) -> dict[str, Any]:
    """DeepSpeed's configuration: the boundary of accumulation is ours, and everything that is stored or added up is fp32."""
    options = dict(options or {})
    # With no module safe for lower precision, autocast leaves gradients and their reduction in fp32.
    torch_autocast = {"enabled": autocast is not None, "dtype": autocast or "bfloat16", "lower_precision_safe_modules": []}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0,
        "communication_data_type": "fp32",
        "torch_autocast": torch_autocast,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
        # Buckets of 200 MB: the default of 2 GB is allocated whole, whatever the size of the model.
        "zero_optimization": {"stage": stage, "reduce_bucket_size": 50_000_000, **options.pop("zero_optimization", {})},
        **options,
    }
