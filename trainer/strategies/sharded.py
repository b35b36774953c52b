"""State cut by rows over the ranks, or over those of a group: what `fsdp` and `hsdp` drive."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from trainer.checkpoint.boxes import Box, rows_of
from trainer.models.blocks import blocks
from trainer.strategies.torch_driven import Called, TorchPlacement

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from trainer.checkpoint.pieces import Read
    from trainer.distributed import World
    from trainer.strategies.fsdp import FSDP


class Sharded(TorchPlacement):
    """Rows of every parameter and moment here, as DTensors. mesh: of the ranks that share the rows, and of their replicas before it."""

    def __init__(
        self,
        called: Called,
        root: nn.Module,
        skeleton: nn.Module,
        optimizer: torch.optim.Optimizer,
        world: World,
        mesh: DeviceMesh,
        reduce_dtype: str = "float32",
    ):
        self.root = root
        self.skeleton = skeleton
        self.leads = world.leads
        self.device = world.device
        self.shards = mesh.size(-1)
        self.replica, self.replicas = world.rank // self.shards, mesh.size() // self.shards
        self.reduce_dtype = reduce_dtype
        named = list(root.named_parameters())
        assert all(isinstance(parameter, DTensor) for _, parameter in named), "fully_shard left parameters whole"
        super().__init__(called, named, optimizer, world)

    def held(self, tensor: Tensor) -> Box | None:
        return box_of(tensor)

    def owned(self, tensor: Tensor) -> Box | None:
        held = self.held(tensor)
        # Replicas hold the same rows; each writes its part of them.
        part = rows_of(held.lengths, self.replica, self.replicas) if held is not None else None
        return Box(tuple(map(sum, zip(held.offset, part.offset, strict=True))), part.lengths) if held and part else None

    def local(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to_local()  # type: ignore[attr-defined]

    def accumulate(self, loss: Tensor, last: bool) -> None:
        # Every backward reduces: the sum over micro-batches is kept sharded, which is what this strategy is for. It averages.
        self.scaled(loss * self.data_size).backward()

    def norm(self) -> Tensor:
        # Of local rows, then one all-reduce; torch's own over DTensors reduces the norm of each parameter by itself.
        local = [self.local(parameter.grad) for _, parameter in self.named if parameter.grad is not None]
        squares = nn.utils.get_total_norm(local).square().to(self.device)
        # Over all ranks, so that replicas have it to the last bit, although each holds the whole sum.
        dist.all_reduce(squares)
        return (squares / self.replicas).sqrt()

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
        rows = -(-shape[0] // self.shards)
        return rows * torch.Size(shape[1:]).numel()

    def reductions(self) -> set[torch.dtype]:
        return {getattr(torch, self.reduce_dtype)} if self.data_size > 1 else set()

    def asked(self) -> dict[str, str]:
        return {"reduction": self.reduce_dtype}


def shard(module: nn.Module, mesh: DeviceMesh, options: FSDP) -> None:
    """Cut a module on meta in place: a unit for each transformer block, and one for the rest."""
    # fp32 unless it is asked for, whatever autocast computes in: what is gathered are the masters themselves.
    lower = getattr(torch, options.param_dtype) if options.param_dtype != "float32" else None
    policy = MixedPrecisionPolicy(param_dtype=lower, reduce_dtype=getattr(torch, options.reduce_dtype))
    offload = CPUOffloadPolicy(pin_memory=mesh.device_type != "cpu") if options.cpu_offload else OffloadPolicy()
    found = units(module)
    for part in (*found, module):
        fully_shard(part, mesh=mesh, reshard_after_forward=options.reshard_after_forward, mp_policy=policy, offload_policy=offload)
    for index, block in enumerate(found if options.prefetch else ()):
        assert isinstance(block, FSDPModule)
        block.set_modules_to_forward_prefetch(found[index + 1 : index + 1 + options.prefetch])  # type: ignore[arg-type]
        block.set_modules_to_backward_prefetch(found[max(0, index - options.prefetch) : index][::-1])  # type: ignore[arg-type]


@torch.no_grad()
def fill(module: nn.Module, weights: Read, device: torch.device, on_host: bool = False) -> None:
    """Give a module that was cut on meta room for this rank's rows, and read them: the share and one tensor, never the whole."""
    home = torch.device("cpu") if on_host else device
    room: dict[Tensor, Tensor] = {}

    def make(tensor: Tensor) -> Tensor:
        if tensor not in room:
            room[tensor] = torch.zeros_like(tensor, device=home) if tensor.is_meta else tensor.to(device)
        return room[tensor]

    # What FSDP keeps of a parameter follows only in `_apply`, which swaps the contents of a DTensor: what was tied stays tied.
    module._apply(make)
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
