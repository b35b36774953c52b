"""Data parallelism: every rank holds everything, gradients are averaged bucket by bucket during the last backward of a step."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from trainer.choices import ConfigError, choice, placement, require_positive
from trainer.strategies import Placement, Strategy

if TYPE_CHECKING:
    from torch import nn

    from trainer.checkpoint.pieces import Read
    from trainer.config import Config
    from trainer.distributed import World
    from trainer.strategies import BuildOptimizer


@choice
class DDP(Strategy):
    """Everything on every device; torch's DistributedDataParallel, constructed by Accelerate."""

    name: str = "ddp"
    reduce_dtype: str = placement("float32", help="gradients are added up over the ranks in: float32 | bfloat16")
    bucket_mib: float = placement(25.0, help="gradients that are added up over the ranks at once, while backward goes on, in MiB")

    def check(self) -> None:
        if self.reduce_dtype not in ("float32", "bfloat16"):
            raise ConfigError(f"strategy.reduce_dtype: {self.reduce_dtype}; allowed: float32, bfloat16")
        require_positive(self, "bucket_mib")

    def place(self, module: nn.Module, weights: Read, build_optimizer: BuildOptimizer, config: Config, world: World) -> Placement:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        from trainer.models.deferred import materialise
        from trainer.strategies.replicated import Averaged, Replicated
        from trainer.strategies.torch_driven import Called

        # A buffer here is a constant (positions, masks): broadcasting it before every forward would be for nothing.
        kwargs = DistributedDataParallelKwargs(
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            bucket_cap_mb=self.bucket_mib,  # type: ignore[arg-type]
        )
        accelerator = Accelerator(cpu=world.device.type == "cpu", mixed_precision="no", kwargs_handlers=[kwargs])
        config.adapter.place(module, weights, world.device)
        with warnings.catch_warnings():
            # torch 2.13 has another name for it, which Accelerate cannot pass yet.
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
            wrapped = accelerator.prepare_model(materialise(module, weights, world.device))
        optimizer = build_optimizer(module.named_parameters())
        if world.size == 1:
            # Accelerate wraps nothing for one process.
            return Replicated(Called(wrapped, world.device, config.precision.autocast), module, optimizer, world)
        return Averaged(wrapped, module, optimizer, config.precision.autocast, world, self.reduce_dtype)
