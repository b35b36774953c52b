"""Parameters in partitions too, gathered module by module while they compute: what `zero3` drives."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer.checkpoint.boxes import boxes_of_range
from trainer.models.deferred import exchange_parameters, move_buffers
from trainer.strategies.partitioned import Partitioned, Range, quieten
from trainer.strategies.torch_driven import is_count

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from trainer.checkpoint.pieces import Read
    from trainer.distributed import World


class PartitionedParameters(Partitioned):
    """Stage 3: of every parameter an equal part on each rank, the last one padded.

    skeleton: the module on the meta device, for `gathered`. named: the parameters as they are partitioned, in the skeleton's order.
    """

    def __init__(self, engine: DeepSpeedEngine, skeleton: nn.Module, named: list[tuple[str, nn.Parameter]], world: World):
        self.skeleton = skeleton
        self.named: list[tuple[str, Any]] = named
        self.trained: list[tuple[str, Any]] = [(name, parameter) for name, parameter in self.named if parameter.requires_grad]
        self.leads = world.leads
        super().__init__(engine, world)

    def _prime(self) -> None:
        # Between steps DeepSpeed keeps the optimizer's groups empty.
        self.zero._set_fp32_optimizer_param_groups()
        super()._prime()
        self.zero._clear_fp32_optimizer_param_groups()

    def masters(self) -> list[Tensor]:
        return list(self.zero.fp32_partitioned_groups_flat)

    def ranges(self) -> Iterator[Range]:
        for name, parameter in self.trained:
            start, length = range_of(parameter, self.data_rank)
            if length:
                group, at, _ = self.zero.grad_position[self.zero.get_param_id(parameter)]
                master = self.zero.fp32_partitioned_groups_flat[group]
                flats = {"parameter": master} | {
                    kind: tensor for kind, tensor in self.zero.optimizer.state[master].items() if not is_count(kind)
                }
                state = {kind: flat.detach().narrow(0, at, length) for kind, flat in flats.items()}
                yield Range(name, tuple(parameter.ds_shape), start, state)

    def follow(self) -> None:
        # As at the end of DeepSpeed's own step.
        self.zero._partition_all_parameters()
        for group in range(len(self.zero.fp16_groups)):
            self.zero._reassign_or_swap_out_partitioned_parameters(group)
        if self.zero.persistent_parameters:
            self.zero.persistent_parameters[0].all_gather(self.zero.persistent_parameters)

    @contextmanager
    def gathered(self) -> Iterator[nn.Module]:
        import deepspeed

        memo: dict[int, nn.Parameter] = {}
        empty = dict(self.skeleton.named_parameters())
        for name, parameter in self.named:
            # One at a time: only rank 0 comes to hold all of them.
            with deepspeed.zero.GatheredParameters([parameter]):
                if self.leads:
                    memo[id(empty[name])] = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
        yield copy.deepcopy(self.skeleton, memo) if self.leads else self.skeleton

    # Gradients.

    def finalize(self) -> None:
        self.zero.finalize_gradient_accumulation_boundary()

    def drop(self) -> Tensor:
        norm = torch.stack(self.zero._get_norm_groups()).norm().to(self.device)
        self.zero._pre_step()
        self.zero._partition_all_parameters()
        self.zero.zero_grad(set_to_none=True)
        if self.zero.offload_optimizer:
            self.zero.reset_cpu_buffers()
        else:
            self.zero.averaged_gradients = {}
        return norm

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        self.finalize()
        found = self.zero.get_fp32_grad_partitions()
        grads = {
            id(parameter): found[group][index]
            for group, parameters in enumerate(self.zero.fp16_groups)
            for index, parameter in enumerate(parameters)
        }
        for name, parameter in self.trained:
            _, length = range_of(parameter, self.data_rank)
            if length:
                yield name, grads[id(parameter)].detach().narrow(0, 0, length)

    # What is where.

    def state_table(self) -> list[dict[str, Any]]:
        partitioned = [parameter for _, parameter in self.named]
        parameters = [parameter.ds_tensor for parameter in partitioned]
        parameters += [parameter.data for parameter in partitioned if parameter.data.numel() == parameter.ds_numel]
        gradients = [parameter.grad for parameter in partitioned if parameter.grad is not None]
        return self.table(parameters, [self.zero.grad_partitions_flat_buffer, *gradients])

    def shares(self) -> dict[str, int]:
        everything, share = (4 * sum(-(-one.ds_numel // self.data_size) for _, one in some) for some in (self.named, self.trained))
        # Small ones stay whole beside their parts (stage3_param_persistence_threshold).
        small = 4 * sum(parameter.ds_numel for parameter in self.zero.persistent_parameters)
        kinds = {kind for master in self.masters() for kind in self.zero.optimizer.state[master] if not is_count(kind)}
        gradient = share * (2 if self.zero.offload_optimizer else 1)
        return {"parameter": everything + small, "gradient": gradient, "master": share} | dict.fromkeys(sorted(kinds), share)


def range_of(parameter: Any, rank: int) -> tuple[int, int]:
    """First element and number of elements of a rank's part of a partitioned parameter, the padding of the last parts left out."""
    size = parameter.ds_tensor.ds_numel
    return rank * size, max(0, min(size, parameter.ds_numel - rank * size))


def partition(module: nn.Module, weights: Read, settings: dict[str, Any], world: World) -> dict[nn.Parameter, nn.Parameter]:
    """Give each parameter of a module on the meta device its parts on the ranks, with their values.

    One at a time, so that no rank ever holds two whole ones. Returns the partitioned parameters by what they stand for.
    """
    quieten(world)
    import deepspeed

    placed: dict[nn.Parameter, nn.Parameter] = {}
    for name, empty in module.named_parameters():
        holder = nn.ParameterList([nn.Parameter(torch.empty_like(empty, device=world.device), empty.requires_grad)])
        if placed:
            next(iter(placed.values())).convert_to_zero_parameters(param_list=list(holder))  # type: ignore[attr-defined]
        else:
            deepspeed.zero.Init(module=holder, config_dict_or_path=settings, dtype=empty.dtype)
        _fill(holder[0], name, weights, world.rank)
        placed[empty] = holder[0]
    exchange_parameters(module, placed)
    move_buffers(module, world.device)
    return placed


def _fill(parameter: Any, name: str, weights: Read, rank: int) -> None:
    start, length = range_of(parameter, rank)
    shape, at = tuple(parameter.ds_shape), 0
    for box in boxes_of_range(shape, start, length):
        values = weights(name, "parameter", shape, box)
        parameter.ds_tensor.data.narrow(0, at, box.size).copy_(values.reshape(-1))
        at += box.size
    # The padding of the last parts is never read, but a norm of it should not be NaN.
    parameter.ds_tensor.data.narrow(0, at, parameter.ds_tensor.ds_numel - at).zero_()
