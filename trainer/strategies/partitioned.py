"""State in flat partitions of DeepSpeed's engine: what all stages of ZeRO share in driving it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer import averaging
from trainer.checkpoint.boxes import Box, Shape, boxes_of_range
from trainer.checkpoint.pieces import Piece
from trainer.strategies import Placement
from trainer.strategies.loss_scale import LossScale
from trainer.strategies.tables import table
from trainer.strategies.torch_driven import moments, prime, require_skipping, set_counts

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from trainer.checkpoint.pieces import Read
    from trainer.distributed import World


@dataclass(frozen=True)
class Range:
    """The flat range of a parameter that this rank owns, from element `start`. state: kind → its values there, flat, not a copy."""

    name: str
    shape: Shape
    start: int
    state: dict[str, Tensor]

    def boxes(self, flat: Tensor) -> Iterator[tuple[Box, Tensor]]:
        """A kind's values as boxes of the whole tensor."""
        at = 0
        for box in boxes_of_range(self.shape, self.start, flat.numel()):
            yield box, flat.narrow(0, at, box.size).view(box.lengths)
            at += box.size


class Partitioned(Placement):
    """ZeRO's flat partitions. A step of its waits for the device (DeepSpeed reads overflow and norm on the host)."""

    def __init__(self, engine: DeepSpeedEngine, world: World):
        self.module = self.engine = engine
        self.zero: Any = engine.optimizer
        self.device = world.device
        self.data_rank, self.data_size = world.rank, world.size
        self.updates = 0
        fp16 = engine.torch_autocast_enabled() and engine.torch_autocast_dtype() is torch.float16
        # DeepSpeed scales a loss by what it is told, but under autocast it does not look for the scale itself.
        self.loss_scale = LossScale(torch.device("cpu")) if fp16 else None
        # Its own scaler would scale once more, and divide by that on the way to the optimizer.
        self.zero.torch_autocast_gradscaler = None
        require_skipping(self.zero.optimizer)
        self._prime()
        self._tell_scale()

    # What the stages have in different places.

    def masters(self) -> list[Tensor]:
        """The flat partitions that the optimizer updates."""
        raise NotImplementedError

    def ranges(self) -> Iterator[Range]:
        """This rank's flat range of each parameter, where it owns one."""
        raise NotImplementedError

    def follow(self) -> None:
        """The masters are new: make the parameters that forward reads follow them. Called by every rank."""
        raise NotImplementedError

    def finalize(self) -> None:
        """Make of what is accumulated the reduced gradients that a step takes."""
        raise NotImplementedError

    def drop(self) -> Tensor:
        """Drop finalized gradients; the norm they had, of the scaled loss."""
        raise NotImplementedError

    # A step.

    def _prime(self) -> None:
        # With offload the partitions keep their gradients' buffers from step to step.
        buffers = [master.grad for master in self.masters()]
        prime(self.zero.optimizer)
        for master, buffer in zip(self.masters(), buffers, strict=True):
            master.grad = buffer

    def _tell_scale(self) -> None:
        if self.loss_scale is not None:
            # The loss is multiplied by the ranks already: on more of them, fp16 would overflow at a lower scale.
            self.zero.loss_scale = float(self.loss_scale.value) / self.data_size

    @contextmanager
    def unscaled(self) -> Iterator[None]:
        self.zero.loss_scale = 1.0
        try:
            yield
        finally:
            self._tell_scale()

    def accumulate(self, loss: Tensor, last: bool) -> None:
        # The engine averages over the ranks; a rank's loss is its share of a sum. scale_wrt_gas would divide once more.
        self.engine.backward(loss * self.data_size, scale_wrt_gas=False)

    def finish(self, lr_factor: float, max_norm: float | None) -> tuple[Tensor, Tensor]:
        for group in self.zero.param_groups:
            group["lr"] = group["base_lr"] * lr_factor
        self.zero.clip_grad = max_norm or 0.0
        self.engine.step()
        norm = torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32, device=self.device)
        applied = not self.zero.overflow
        self.updates += applied
        if self.loss_scale is not None:
            self.loss_scale.update(torch.tensor(float(applied)))
            self._tell_scale()
        return norm, torch.tensor(float(applied), device=self.device)

    def discard(self) -> Tensor:
        self.finalize()
        norm = self.drop() / self.zero.loss_scale
        self.engine._unmanaged_backward_count = 0
        return norm

    # State by name: this rank's flat range of each parameter.

    def pieces(self) -> Iterator[Piece]:
        for owned in self.ranges():
            for kind, flat in owned.state.items():
                for box, values in owned.boxes(flat):
                    yield Piece(owned.name, kind, owned.shape, box, values)

    def scalars(self) -> dict[str, int]:
        return {"optimizer_step": self.updates} | (self.loss_scale.scalars() if self.loss_scale is not None else {})

    def load(self, read: Read) -> None:
        self._read(read)
        self.updates = read.scalars["optimizer_step"]
        set_counts(self.zero.optimizer, self.updates)
        if self.loss_scale is not None:
            self.loss_scale.load(read.scalars)
            self._tell_scale()

    @torch.no_grad()
    def _read(self, read: Read) -> None:
        for owned in self.ranges():
            for kind, flat in owned.state.items():
                for box, values in owned.boxes(flat):
                    values.copy_(read(owned.name, kind, owned.shape, box))
        self.follow()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        averaging.exchange_averages(self.zero.optimizer)
        self.follow()
        try:
            yield
        finally:
            averaging.exchange_averages(self.zero.optimizer)
            self.follow()

    # What is where.

    def table(self, parameters: list[Tensor], gradients: list[Tensor]) -> list[dict[str, Any]]:
        """The table of state: these, and what all stages have in their masters."""
        masters = self.masters()
        held: dict[str, list[Tensor]] = {"parameter": parameters, "gradient": list(gradients), "master": masters}
        held["gradient"] += [master.grad for master in masters if master.grad is not None]
        for master in masters:
            for kind, tensor in moments(self.zero.optimizer, master):
                held.setdefault(kind, []).append(tensor)
        return table(held, set(self.zero.ipg_buckets))

    def on_host(self) -> set[str]:
        offload = self.engine.zero_use_cpu_optimizer()
        return set(self.shares()) - {"parameter", "gradient"} if offload else set()


def prepare_engine(module: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any], world: World) -> DeepSpeedEngine:
    """Accelerate's prepared DeepSpeed engine. Raises RuntimeError where Accelerate prepared something else."""
    quieten(world)
    import deepspeed
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    backend = "gloo" if world.device.type == "cpu" else "nccl"
    # Not cpu=True: with it Accelerate forgets the plugin and gives plain DDP. No zero3_init_flag: transformers would partition every
    # model that this process loads from then on.
    accelerator = Accelerator(
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings, zero3_init_flag=False),
        mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend)],
    )
    engine, _ = accelerator.prepare(module, optimizer)
    # What is built from here on, such as the model that an export writes, is no business of the engine; transformers would cut it.
    unset_hf_deepspeed_config()
    if not isinstance(engine, deepspeed.DeepSpeedEngine) or engine.dp_world_size != world.size:
        raise RuntimeError(
            f"Accelerate prepared {type(engine).__name__} for a world of {getattr(engine, 'dp_world_size', '?')}, not of {world.size}"
        )
    return engine


def quieten(world: World) -> None:
    """Import DeepSpeed without its pages of settings, and without compiling what training does not use."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # torch 2.13 has other names for them, and warns at every call.
    warnings.filterwarnings("ignore", message=".*(all_gather_into_tensor|reduce_scatter_tensor)", category=FutureWarning)
    import deepspeed  # noqa: F401

    if world.device.type == "cpu":
        # It would compile an operation for shared memory (50 s, g++ and ninja needed) that only inference uses.
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
