"""ZeRO: moments, master weights, gradients and parameters partitioned over the ranks, as much of it as the stage says.

DeepSpeed's engine, constructed by Accelerate and driven by us. https://arxiv.org/abs/1910.02054
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar

from trainer.choices import ConfigError, choice, placement
from trainer.strategies import Placement, Strategy

if TYPE_CHECKING:
    from torch import nn

    from trainer.checkpoint.pieces import Read
    from trainer.config import Config
    from trainer.distributed import World
    from trainer.strategies import BuildOptimizer


class Offload(str, Enum):
    """Where a part of the state lies: on the device (none), in the host's memory, on a disk (which the support matrix refuses)."""

    none = "none"
    cpu = "cpu"
    nvme = "nvme"


@dataclass
class Zero(Strategy):
    """A stage of ZeRO."""

    stage: ClassVar[int]
    offload_optimizer: Offload = placement(Offload.none, help="masters, moments and their update: none, on the device | cpu, on the host")
    options: dict[str, Any] = placement(default_factory=dict, help="keys of DeepSpeed's configuration that the framework does not name")
    ds_config: str | None = placement(None, help="an existing ds_config.json, translated into keys of ours when the run is composed")

    def check(self) -> None:
        if self.ds_config is not None:
            raise ConfigError(
                f"strategy.ds_config: {self.ds_config}; it is translated where it stands on the command line, no file may hold it"
            )
        zero = _section(self.options, "zero_optimization")
        for section in _OFFLOADS:
            _section(zero, section, "zero_optimization.")
        for key in dotted(self.options):
            if key in _TAKEN:
                instead = f"; set {_TAKEN[key]}" if _TAKEN[key] else ""
                raise ConfigError(
                    f"strategy.options: {key} is set by the framework, which rests on its value; remove it{instead}, "
                    "options is for keys of DeepSpeed's configuration that the framework does not name"
                )
        for section in _OFFLOADS:
            if section in zero and section not in self.offloads():
                raise ConfigError(
                    f"strategy.options: zero_optimization.{section} says how to offload what is not offloaded; "
                    f"remove it, or set {_OFFLOADS[section]}=cpu"
                )

    def composed(self, config: Config) -> None:
        if self.options:
            import torch

            from trainer.strategies.options import refuse_unknown

            cuda = config.device.kind != "cpu" and torch.cuda.is_available()
            refuse_unknown(self.options, self.partitioning(), _TAKEN, "cuda" if cuda else "cpu")

    def offloads(self) -> dict[str, dict[str, Any]]:
        """DeepSpeed's section of each part of the state that is offloaded."""
        return {} if self.offload_optimizer is Offload.none else {"offload_optimizer": {"device": self.offload_optimizer.value}}

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
        options.pop("zero_optimization", None)
        return OWN | {"torch_autocast": torch_autocast, "zero_optimization": self.partitioning()} | options

    def partitioning(self) -> dict[str, Any]:
        """DeepSpeed's `zero_optimization`."""
        # Buckets of 200 MB: the default of 2 GB is allocated whole, whatever the size of the model.
        zero = {"stage": self.stage, "reduce_bucket_size": 50_000_000} | self.own() | self.options.get("zero_optimization", {})
        return zero | {section: zero.get(section, {}) | own for section, own in self.offloads().items()}

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
    offload_parameters: Offload = placement(
        Offload.none, help="parameters that no module computes with: none, on the device | cpu, on the host"
    )

    def offloads(self) -> dict[str, dict[str, Any]]:
        own = {} if self.offload_parameters is Offload.none else {"offload_param": {"device": self.offload_parameters.value}}
        return super().offloads() | own

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
    # With offload, the optimizer that optim names would be exchanged for one that cannot drop a step.
    "zero_force_ds_cpu_optimizer": False,
    "steps_per_print": None,
}
# DeepSpeed's sections of offload, and the key of ours that asks for each.
_OFFLOADS = {"offload_optimizer": "strategy.offload_optimizer", "offload_param": "strategy=zero3 strategy.offload_parameters"}
# Keys of DeepSpeed's that options may not have, and what to set instead, where there is a key of ours.
_TAKEN = dict.fromkeys(OWN, "") | {
    "train_batch_size": "global_batch",
    "gradient_clipping": "optim.max_norm",
    "optimizer": "optim",
    "scheduler": "schedule",
    "torch_autocast": "precision",
    "bf16": "precision",
    "bfloat16": "precision",
    "fp16": "precision",
    "amp": "precision",
    "zero_optimization.stage": "strategy=zero1, zero2 or zero3",
    "zero_optimization.cpu_offload": "strategy.offload_optimizer=cpu",
    "zero_optimization.cpu_offload_param": "strategy=zero3 strategy.offload_parameters=cpu",
    # A part of the update on the device, or delayed: the loop drives one optimizer, in step.
    "zero_optimization.offload_optimizer.ratio": "",
    "zero_optimization.offload_optimizer.super_offload": "",
    "zero_optimization.zenflow": "",
}
_TAKEN |= {f"zero_optimization.{section}.device": key for section, key in _OFFLOADS.items()}


def dotted(options: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key of nested options, a section's as well as those in it."""
    for key, value in options.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from dotted(value, f"{prefix}{key}.")


def _section(options: dict[str, Any], name: str, prefix: str = "") -> dict[str, Any]:
    section = options.get(name, {})
    if not isinstance(section, dict):
        raise ConfigError(f"strategy.options.{prefix}{name}: {section!r}; allowed: a section, such as {{key: value}}")
    return section
