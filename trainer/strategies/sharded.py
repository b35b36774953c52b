"""State cut by rows over the ranks: what `fsdp` drives."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from trainer.checkpoint.boxes import Box
from trainer.models.blocks import blocks
from trainer.models.deferred import exchange_parameters
from trainer.strategies.torch_driven import Called, TorchPlacement

if TYPE_CHECKING:
    from trainer.checkpoint.pieces import Read
    from trainer.distributed import World


class Sharded(TorchPlacement):
    """Rows of every parameter and moment here, as DTensors."""

    def __init__(self, called: Called, root: nn.Module, skeleton: nn.Module, optimizer: torch.optim.Optimizer, world: World):
        self.root = root
        self.skeleton = skeleton
        self.leads = world.leads
        named = list(root.named_parameters())
        assert all(isinstance(parameter, DTensor) for _, parameter in named), "fully_shard left parameters whole"
        super().__init__(called, named, optimizer, world)

    def held(self, tensor: Tensor) -> Box | None:
        return box_of(tensor)

    def local(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to_local()  # type: ignore[attr-defined]

    def accumulate(self, loss: Tensor, last: bool) -> None:
        # Every backward reduces: the sum over micro-batches is kept sharded, which is what this strategy is for. It averages.
        self.scaled(loss * self.data_size).backward()

    def norm(self) -> Tensor:
        # Of local rows, then one all-reduce; torch's own over DTensors reduces the norm of each parameter by itself.
        squares = nn.utils.get_total_norm(
            [self.local(parameter.grad) for _, parameter in self.named if parameter.grad is not None]
        ).square()
        dist.all_reduce(squares)
        return squares.sqrt()

    def _read(self, read: Read) -> None:
        self._reshard()
        super()._read(read)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        self._reshard()
        with super().averaged():
            yield
            self._reshard()

    def _reshard(self) -> None:
        # An evaluation leaves the root gathered until the next backward; what is gathered would go on with the old values.
        for module in self.root.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    @contextmanager
    def gathered(self) -> Iterator[nn.Module]:
        memo: dict[int, nn.Parameter] = {}
        empty = dict(self.skeleton.named_parameters())
        for name, parameter in self.named:
            full = parameter.detach().full_tensor()  # type: ignore[attr-defined]
            if self.leads:
                memo[id(empty[name])] = nn.Parameter(full, requires_grad=parameter.requires_grad)
        yield copy.deepcopy(self.skeleton, memo) if self.leads else self.skeleton

    def share(self, shape: tuple[int, ...]) -> int:
        rows = -(-shape[0] // self.data_size)
        return rows * torch.Size(shape[1:]).numel()


def shard(module: nn.Module, world: World) -> None:
    """Cut a module on meta in place: a unit for each transformer block, and one for the rest."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    for block in units(module):
        fully_shard(block, mesh=mesh)
    fully_shard(module, mesh=mesh)


@torch.no_grad()
def fill(module: nn.Module, weights: Read, device: torch.device) -> None:
    """Give a module that was cut on meta room for this rank's rows, and read them: the share and one tensor, never the whole."""
    places = dict(module.named_parameters(remove_duplicate=False))
    room: dict[Tensor, Tensor] = {}

    def make(tensor: Tensor) -> Tensor:
        if tensor not in room:
            room[tensor] = torch.zeros_like(tensor, device=device) if tensor.is_meta else tensor.to(device)
        return room[tensor]

    # What FSDP keeps of a parameter follows only in `_apply`; that makes a parameter for each place, so what was tied is tied again.
    module._apply(make)
    first: dict[nn.Parameter, nn.Parameter] = {}
    now = dict(module.named_parameters(remove_duplicate=False))
    exchange_parameters(module, {now[name]: first.setdefault(before, now[name]) for name, before in places.items()})
    for name, parameter in module.named_parameters():
        held = box_of(parameter)
        if held is not None:
            parameter.to_local().copy_(weights(name, "parameter", tuple(parameter.shape), held))  # type: ignore[attr-defined]


def box_of(tensor: Tensor) -> Box | None:
    """The part of a DTensor that is on this rank; None where it has no rows."""
    lengths, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)  # type: ignore[attr-defined]
    return Box(tuple(offset), tuple(lengths)) if all(lengths) else None


def units(module: nn.Module) -> list[nn.Module]:
    """The transformer blocks, each to be a unit of its own.

    Raises ValueError where a parameter of a block is tied to one outside of it: two units would each update a copy of their own.
    """
    found = blocks(module)
    owners: dict[int, set[int]] = {}
    for index, block in enumerate(found):
        for parameter in block.parameters():
            owners.setdefault(id(parameter), set()).add(index)
    everywhere = module.named_parameters(remove_duplicate=False)
    outside = {id(parameter) for name, parameter in everywhere if not _within(name, module, found)}
    if any(len(indices) > 1 or key in outside for key, indices in owners.items()):
        raise ValueError("fsdp cannot cut a model whose blocks share parameters with each other or with the rest; use strategy=ddp")
    return found


def _within(name: str, module: nn.Module, found: list[nn.Module]) -> bool:
    parts = name.split(".")
    return any(module.get_submodule(".".join(parts[:depth])) in found for depth in range(1, len(parts)))
