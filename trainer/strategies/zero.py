"""ZeRO: moments, master weights, gradients and parameters partitioned over the ranks, as much of it as the stage says.

DeepSpeed's engine, constructed by Accelerate and driven by us. https://arxiv.org/abs/1910.02054
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
    ds_config: str | None = placement(None, help="an existing ds_config.json, translated into keys of ours when the run is composed")

    def check(self) -> None:
        if self.ds_config is not None:
            raise ConfigError(
                f"strategy.ds_config: {self.ds_config}; it is translated where it stands on the command line, no file may hold it"
            )
        for key, value in self.options.items():
            clash = sorted(set(value) & _OWN_OF_ZERO) if key == "zero_optimization" else [key] if key in OWN or key in _ELSEWHERE else []
            if clash:
                instead = f"; set {_ELSEWHERE[clash[0]]}" if clash[0] in _ELSEWHERE else ""
                raise ConfigError(
                    f"strategy.options: {', '.join(clash)} is set by the framework, which rests on its value; remove it{instead}, "
                    "options is for keys of DeepSpeed's configuration that the framework does not name"
                )

    def place(self, module: nn.Module, weights: Read, build_optimizer: BuildOptimizer, config: Config, world: World) -> Placement:
        from trainer.models.deferred import materialise
        from trainer.strategies.partitioned import prepare_engine
        from trainer.strategies.partitioned_state import PartitionedState

        named = list(materialise(module, weights, world.device).named_parameters())
        engine = prepare_engine(module, build_optimizer(iter(named)), self.settings(config), world)
        return PartitionedState(engine, module, named, world)

    def settings(self, config: Config) -> dict[str, Any]:
        """DeepSpeed's configuration: the boundary of accumulation is ours, and everything that is stored or added up is fp32."""
        options, autocast = dict(self.options), config.precision.autocast
        # With no module safe for lower precision, autocast leaves gradients and their reduction in fp32.
        torch_autocast = {"enabled": autocast is not None, "dtype": autocast or "bfloat16", "lower_precision_safe_modules": []}
        # Buckets of 200 MB: the default of 2 GB is allocated whole, whatever the size of the model.
        zero = {"stage": self.stage, "reduce_bucket_size": 50_000_000} | self.own() | options.pop("zero_optimization", {})
        return OWN | {"torch_autocast": torch_autocast, "zero_optimization": zero} | options

    def own(self) -> dict[str, Any]:
        """What a stage sets in `zero_optimization`, unless `options` has it."""
        return {}


@choice
class Zero1(Zero):
    """Moments and masters partitioned; gradients and parameters whole on every device. Reduces once a step."""

    name: str = "zero1"
    stage: ClassVar[int] = 1


@choice
class Zero2(Zero):
    """Moments, masters and gradients partitioned; parameters whole on every device."""

    name: str = "zero2"
    stage: ClassVar[int] = 2


@choice
class Zero3(Zero):
    """Moments, masters, gradients and parameters partitioned; a module's parameters are gathered while it computes."""

    name: str = "zero3"
    stage: ClassVar[int] = 3

    def place(self, module: nn.Module, weights: Read, build_optimizer: BuildOptimizer, config: Config, world: World) -> Placement:
        import copy

        from trainer.strategies.partitioned import prepare_engine
        from trainer.strategies.partitioned_parameters import PartitionedParameters, partition

        skeleton = copy.deepcopy(module)
        # Shapes decide on groups, and a partitioned parameter has none.
        optimizer = build_optimizer(module.named_parameters())
        settings = self.settings(config)
        placed = partition(module, weights, settings, world)
        for group in optimizer.param_groups:
            group["params"] = [placed[parameter] for parameter in group["params"]]
        engine = prepare_engine(module, optimizer, settings, world)
        return PartitionedParameters(engine, skeleton, list(module.named_parameters()), world)

    def own(self) -> dict[str, Any]:
        # Released as soon as a module has computed; by default a model of up to 10⁹ parameters stays whole from forward to backward.
        return {"stage3_max_reuse_distance": 0}


# What the loop rests on.
OWN: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,
    "gradient_accumulation_steps": 1,
    "managed_gradient_accumulation": False,
    "gradient_clipping": 0.0,
    "communication_data_type": "fp32",
    "zero_allow_untested_optimizer": True,
    "steps_per_print": None,
}
# The stage is the strategy; with offload gradients lie where the proof before step 1 does not find them.
_OWN_OF_ZERO = {"stage", "offload_optimizer", "offload_param"}
# What has a key of ours.
_ELSEWHERE = {
    "train_batch_size": "global_batch",
    "gradient_clipping": "optim.max_norm",
    "optimizer": "optim",
    "scheduler": "schedule",
    "torch_autocast": "precision",
    "bf16": "precision",
    "fp16": "precision",
    "amp": "precision",
}
