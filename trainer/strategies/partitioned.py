"""State in flat partitions of DeepSpeed's engine: what `zero2` drives."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer import averaging
from trainer.checkpoint.boxes import boxes_of_range
from trainer.checkpoint.pieces import Piece
from trainer.strategies import Placement
from trainer.strategies.loss_scale import LossScale
from trainer.strategies.tables import table
from trainer.strategies.torch_driven import is_count, prime, require_skipping, set_counts

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from trainer.checkpoint.pieces import Read
    from trainer.distributed import World


class Partitioned(Placement):
    """ZeRO's flat partitions. A step of its waits for the device (DeepSpeed reads overflow and norm on the host)."""

    def __init__(self, engine: DeepSpeedEngine, task_module: nn.Module, named: list[tuple[str, nn.Parameter]], world: World):
        self.module = self.engine = engine
        self.task_module = task_module
        self.named = named
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
        prime(self.zero.optimizer)
        self.zero._lazy_init_hp_params_optimizer_state()
        self._tell_scale()

    # A step.

    def _tell_scale(self) -> None:
        if self.loss_scale is not None:
            self.zero.loss_scale = float(self.loss_scale.value)

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
        self.zero.finalize_gradient_accumulation_boundary()
        norm = self.zero.scaled_global_norm() / self.zero.loss_scale
        self.zero.zero_grad(set_to_none=True)
        for group in self.zero.averaged_gradients:
            self.zero.averaged_gradients[group] = self.zero.all_grad_tensors[group] = None
        self.engine._unmanaged_backward_count = 0
        return norm

    # State by name: this rank's flat range of each parameter.

    def ranges(self) -> Iterator[tuple[str, nn.Parameter, Any]]:
        """Name, parameter, and DeepSpeed's record of the flat range that this rank owns, where it owns one."""
        for name, parameter in self.named:
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is not None and mapping.lp_fragment_address.numel:
                yield name, parameter, mapping

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        grads = {
            id(parameter): grad
            for group, tensors in self.zero.all_grad_tensors.items()
            for parameter, grad in zip(self.zero.params_in_partition[group], tensors or (), strict=False)
        }
        for name, parameter, mapping in self.ranges():
            if id(parameter) in grads:
                # Outside of the own range a gradient is not reduced.
                address = mapping.lp_fragment_address
                yield name, grads[id(parameter)].detach().flatten().narrow(0, address.start, address.numel)

    @staticmethod
    def kinds(mapping: Any) -> Iterator[tuple[str, Tensor]]:
        """Master weights and moments of one range, by kind, flat."""
        yield "parameter", mapping.get_hp_fragment().detach()
        for kind in mapping.get_optim_state_keys():
            yield kind, mapping.get_hp_fragment(kind).detach()

    def pieces(self) -> Iterator[Piece]:
        for name, parameter, mapping in self.ranges():
            shape, address = tuple(parameter.shape), mapping.lp_fragment_address
            for kind, flat in self.kinds(mapping):
                at = 0
                for box in boxes_of_range(shape, address.start, address.numel):
                    yield Piece(name, kind, shape, box, flat.narrow(0, at, box.size).view(box.lengths))
                    at += box.size

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
        for name, parameter, mapping in self.ranges():
            shape, address = tuple(parameter.shape), mapping.lp_fragment_address
            for kind, flat in self.kinds(mapping):
                at = 0
                for box in boxes_of_range(shape, address.start, address.numel):
                    flat.narrow(0, at, box.size).view(box.lengths).copy_(read(name, kind, shape, box))
                    at += box.size
        # The masters are new; the parameters that forward reads follow.
        self.zero.update_lp_params()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        averaging.exchange_averages(self.zero.optimizer)
        self.zero.update_lp_params()
        try:
            yield
        finally:
            averaging.exchange_averages(self.zero.optimizer)
            self.zero.update_lp_params()

    def gathered(self) -> AbstractContextManager[nn.Module]:
        return nullcontext(self.task_module)

    # What is where.

    def state_table(self) -> list[dict[str, Any]]:
        masters = self.zero.single_partition_of_fp32_groups
        held: dict[str, list[Tensor]] = {"parameter": list(self.zero.bit16_groups_flat)}
        held["gradient"] = [grad for tensors in self.zero.all_grad_tensors.values() for grad in tensors or ()]
        held["master"] = list(masters)
        for master in masters:
            for kind, tensor in self.zero.optimizer.state[master].items():
                if not is_count(kind):
                    held.setdefault(kind, []).append(tensor)
        return table(held, set(self.zero.ipg_buckets))

    def shares(self) -> dict[str, int]:
        most = {"parameter": 0, "gradient": 0}
        for group, parameters in enumerate(self.zero.bit16_groups):
            elements = sum(parameter.numel() for parameter in parameters)
            share = 8 * -(-elements // (2 * self.data_size))  # fp32, in pairs: DeepSpeed aligns partitions to two elements
            most["parameter"] += share * self.data_size
            # A gradient is kept whole where the border of the partition cuts it: at most one at either end.
            most["gradient"] += share + 8 * max(parameter.numel() for parameter in parameters)
            for kind in ("master", *self.zero.optimizer.state[self.zero.single_partition_of_fp32_groups[group]]):
                if not is_count(kind):
                    most[kind] = most.get(kind, 0) + share
        return most


def prepare_engine(module: nn.Module, optimizer: torch.optim.Optimizer, settings: dict[str, Any], world: World) -> DeepSpeedEngine:
    """Accelerate's prepared DeepSpeed engine. Raises RuntimeError where Accelerate prepared something else."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)  # pages of settings otherwise
    import deepspeed
    from accelerate import Accelerator
    from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

    if world.device.type == "cpu":
        # It would compile an operation for shared memory (50 s, g++ and ninja needed) that only inference uses.
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None  # type: ignore[attr-defined]
    backend = "gloo" if world.device.type == "cpu" else "nccl"
    # Not cpu=True: with it Accelerate forgets the plugin and gives plain DDP.
    accelerator = Accelerator(
        deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=settings),
        mixed_precision="no",
        kwargs_handlers=[InitProcessGroupKwargs(backend=backend)],
    )
    engine, _ = accelerator.prepare(module, optimizer)
    if not isinstance(engine, deepspeed.DeepSpeedEngine) or engine.dp_world_size != world.size:
        raise RuntimeError(
            f"Accelerate prepared {type(engine).__name__} for a world of {getattr(engine, 'dp_world_size', '?')}, not of {world.size}"
        )
    return engine
