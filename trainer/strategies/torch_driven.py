"""Placements whose optimizer is torch's and stepped by us: `single`, `ddp` and `fsdp` differ only in what a rank holds and in backward.

The step never waits for the device: whether the gradient is finite and how much to clip are tensors that the fused update reads
(`found_inf`, `grad_scale`: torch's interface of gradient scalers), so a dropped step changes no parameter, moment or counter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trainer import averaging
from trainer.checkpoint.boxes import Box, whole
from trainer.checkpoint.pieces import Piece
from trainer.strategies import Placement
from trainer.strategies.loss_scale import LossScale
from trainer.strategies.tables import table

if TYPE_CHECKING:
    from trainer.adapters import Budget
    from trainer.checkpoint.pieces import Read
    from trainer.distributed import World


Around = Callable[[], AbstractContextManager[Any]]


class Called(nn.Module):
    """What the loop calls: the placed module under autocast (or not), and whatever else surrounds a forward."""

    def __init__(self, inner: nn.Module, device: torch.device, autocast: str | None, around: Around = nullcontext):
        super().__init__()
        self.inner = inner
        self._device_type = device.type
        self.dtype: torch.dtype | None = getattr(torch, autocast) if autocast else None
        self._around = around

    def forward(self, *inputs: Any, **named: Any) -> Any:
        autocast = torch.autocast(self._device_type, dtype=self.dtype) if self.dtype is not None else nullcontext()
        with self._around(), autocast:
            return self.inner(*inputs, **named)


class TorchPlacement(Placement):
    """State in a torch optimizer over whole parameters. named: the parameters as the optimizer holds them, by their unwrapped names.

    A module that computes in fp16 is trained on a scaled loss; every `accumulate` passes its loss through `scaled`.
    """

    def __init__(self, module: Called, named: list[tuple[str, nn.Parameter]], optimizer: torch.optim.Optimizer, world: World):
        require_skipping(optimizer)
        self.module = module
        self.named = named
        # What is frozen is in no checkpoint.
        self.trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        self.optimizer = optimizer
        self.data_rank, self.data_size = world.rank, world.size
        # Updates applied, counted on the device.
        self.updates = torch.zeros((), dtype=torch.int64, device=world.device)
        self.loss_scale = LossScale(world.device) if module.dtype is torch.float16 else None
        self._was_scaled = False
        prime(optimizer)

    # What of a parameter this rank holds, and what of it this rank writes to checkpoints.

    def held(self, tensor: Tensor) -> Box | None:
        """The box of a parameter (or of a moment of its) that is on this rank."""
        return whole(tuple(tensor.shape))

    def owned(self, tensor: Tensor) -> Box | None:
        """The part of what is held that this rank writes; over all ranks every element once."""
        return self.held(tensor)

    def local(self, tensor: Tensor) -> Tensor:
        """The values of what is held, sharing memory with the state."""
        return tensor.detach()

    # A step.

    def accumulate(self, loss: Tensor, last: bool) -> None:
        self.scaled(loss).backward()

    def scaled(self, loss: Tensor) -> Tensor:
        """What backward is called on."""
        self._was_scaled = True
        return loss if self.loss_scale is None else loss * self._scale(self.loss_scale)

    def _scale(self, of: LossScale) -> Tensor:
        # What undoes an engine's mean over the ranks is in the loss already: on more ranks, fp16 would overflow at a lower scale.
        return of.value / self.data_size

    @contextmanager
    def unscaled(self) -> Iterator[None]:
        kept, self.loss_scale = self.loss_scale, None
        try:
            yield
        finally:
            self.loss_scale = kept

    def true_norm(self) -> Tensor:
        """Norm of the gradients of the loss itself."""
        return self.norm() if self.loss_scale is None else self.norm() / self._scale(self.loss_scale)

    def norm(self) -> Tensor:
        """Norm of all accumulated gradients together, over all ranks: a scalar on the device."""
        return nn.utils.get_total_norm([parameter.grad for _, parameter in self.named if parameter.grad is not None])

    def finish(self, lr_factor: float, max_norm: float | None) -> tuple[Tensor, Tensor]:
        if self.loss_scale is not None and not self._was_scaled:
            raise TypeError(
                f"{type(self).__name__}.accumulate must call backward on self.scaled(loss), or precision=fp16 trains on nothing"
            )
        norm = self.true_norm()
        # NaN and infinity alike are not below infinity.
        applied = (norm < math.inf).float()
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * lr_factor
        scale = None if max_norm is None else ((norm + 1e-6) / max_norm).clamp(min=1.0)
        if self.loss_scale is not None:
            # Unscaled before it is clipped: the norm above is of the unscaled gradients.
            scale = self._scale(self.loss_scale) * (1.0 if scale is None else scale)
        step(self.optimizer, 1.0 - applied, scale)
        if self.loss_scale is not None:
            self.loss_scale.update(applied)
        self.optimizer.zero_grad(set_to_none=True)
        self.updates += applied.long()
        return norm, applied

    def allocate(self, budget: Budget | None) -> None:
        if budget is not None:
            from trainer.adapters.ranks import allocate

            allocate(self.optimizer, self.trained, budget)

    def discard(self) -> Tensor:
        norm = self.true_norm()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    # State by name.

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.named:
            if parameter.grad is not None and self.held(parameter.grad) is not None:
                yield name, self.local(parameter.grad)

    def kinds(self, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor]]:
        """The parameter and its moments, by kind."""
        yield "parameter", parameter
        if parameter.requires_grad:
            yield from moments(self.optimizer, parameter)

    def pieces(self) -> Iterator[Piece]:
        for name, parameter in self.trained:
            for kind, tensor in self.kinds(parameter):
                held, owned = self.held(tensor), self.owned(tensor)
                if held is not None and owned is not None:
                    values = self.local(tensor)[owned.slices(held.offset)]
                    yield Piece(name, kind, tuple(tensor.shape), owned, values)

    def scalars(self) -> dict[str, int]:
        return {"optimizer_step": int(self.updates)} | (self.loss_scale.scalars() if self.loss_scale is not None else {})

    def load(self, read: Read) -> None:
        self._read(read)
        self.updates.fill_(read.scalars["optimizer_step"])
        if self.loss_scale is not None:
            self.loss_scale.load(read.scalars)
        set_counts(self.optimizer, read.scalars["optimizer_step"])

    @torch.no_grad()
    def _read(self, read: Read) -> None:
        for name, parameter in self.trained:
            for kind, tensor in self.kinds(parameter):
                held = self.held(tensor)
                if held is not None:
                    self.local(tensor).copy_(read(name, kind, tuple(tensor.shape), held))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        averaging.exchange_averages(self.optimizer)
        try:
            yield
        finally:
            averaging.exchange_averages(self.optimizer)

    # What is where.

    def reductions(self) -> set[torch.dtype]:
        """The types in which gradients are added up over ranks."""
        return {parameter.dtype for _, parameter in self.named} if self.data_size > 1 else set()

    def state_table(self) -> list[dict[str, Any]]:
        held: dict[str, list[Tensor]] = {"parameter": [], "gradient": []}
        for _, parameter in self.named:
            if parameter.grad is not None:
                held["gradient"].append(self.local(parameter.grad))
            for kind, tensor in self.kinds(parameter):
                held.setdefault(kind, []).append(self.local(tensor))
        return table(held, self.reductions())

    def share(self, shape: tuple[int, ...]) -> int:
        """The most elements of a parameter of this shape that theory lets one rank hold."""
        return whole(shape).size

    def shares(self) -> dict[str, int]:
        most: dict[str, int] = {}
        for _, parameter in self.named:
            gradient = [("gradient", parameter)] if parameter.requires_grad else []
            for kind, tensor in (*gradient, *self.kinds(parameter)):
                # Everything is fp32, whatever the precision of products.
                most[kind] = most.get(kind, 0) + 4 * self.share(tuple(tensor.shape))
        return most


def require_skipping(optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that would ignore `found_inf`: it would go NaN with the first bad batch, silently."""
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        raise TypeError(f"{type(optimizer).__name__} cannot drop a step on the device (it reads no found_inf); use its fused variant")


def step(optimizer: torch.optim.Optimizer, dropped: Tensor, scale: Tensor | None) -> None:
    """One update, unless dropped is 1; gradients divided by scale first. Both are scalars on the device."""
    optimizer.found_inf, optimizer.grad_scale = dropped, scale  # type: ignore[attr-defined]
    try:
        optimizer.step()
    finally:
        # Not None: torch's own scaler, which an engine may use, takes an attribute that is there for a tensor.
        del optimizer.found_inf, optimizer.grad_scale  # type: ignore[attr-defined]


def prime(optimizer: torch.optim.Optimizer) -> None:
    """Create the moments before step 1, so that they can be counted and loaded: a dropped step makes them and changes nothing."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    step(optimizer, torch.ones((), device=parameters[0].device), None)
    optimizer.zero_grad(set_to_none=True)


def moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Kind and tensor of a parameter's state: all but the counts of steps."""
    for kind, tensor in optimizer.state[parameter].items():
        if not is_count(kind) and isinstance(tensor, Tensor):
            yield kind, tensor


def is_count(kind: str) -> bool:
    """Whether a kind of an optimizer's state is a count of updates: those are scalars, and the same for all parameters."""
    return kind.endswith("step")


def set_counts(optimizer: torch.optim.Optimizer, updates: int) -> None:
    """Set every count of updates; they never differ, as every parameter takes part in every step."""
    for state in optimizer.state.values():
        for kind, tensor in state.items():
            if is_count(kind):
                tensor.fill_(updates)
