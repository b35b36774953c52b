"""What an optimizer of ours must do beside its update: drop a step without the host knowing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

Group = dict[str, Any]


class OnDevice(torch.optim.Optimizer):
    """Like torch's fused optimizers it reads `found_inf` and `grad_scale` on the device: a step that is not finite changes nothing.

    An update is written once, for whole tensors or for a rank's rows alike: every change that it makes to a parameter or to its state is
    multiplied by `applied`, which is 1, or 0 in a dropped step; gradients are zero there, because 0 × NaN would still be NaN.
    """

    _step_supports_amp_scaling = True
    # Set for the time of a step, as torch's gradient scaler does.
    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None
    # This one of so many ranks that all hold the same: they may share out what an update computes. Set by a strategy.
    rank, ranks = 0, 1

    def __init__(self, groups: Iterable[Group]):
        super().__init__(list(groups), {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        applied = 1.0 if self.found_inf is None else 1.0 - self.found_inf
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self.update(group, parameters, applied)

    def update(self, group: Group, parameters: list[Tensor], applied: Tensor | float) -> None:
        """Step one group. applied: 1, or 0 where nothing may change."""
        raise NotImplementedError

    def gradients(self, parameters: list[Tensor]) -> list[Tensor]:
        """What this rank holds of the gradients, divided by `grad_scale`, zero in a dropped step; changed in place."""
        found = [local(parameter.grad) for parameter in parameters]  # type: ignore[arg-type]
        if self.grad_scale is not None:
            torch._foreach_div_(found, self.grad_scale)
        if self.found_inf is not None:
            dropped = self.found_inf > 0
            for gradient in found:
                gradient.masked_fill_(dropped, 0.0)
        return found

    def kept(self, parameters: list[Tensor], kind: str) -> list[Tensor]:
        """What this rank holds of a kind of state of the parameters' own shape; zeros at first."""
        for parameter in parameters:
            if kind not in self.state[parameter]:
                self.state[parameter][kind] = torch.zeros_like(parameter)
        return [local(self.state[parameter][kind]) for parameter in parameters]

    def steps(self, parameters: list[Tensor]) -> list[Tensor]:
        """How many updates each parameter has had, as scalars on the device; counted by the update itself."""
        for parameter in parameters:
            if "step" not in self.state[parameter]:
                self.state[parameter]["step"] = torch.zeros((), device=parameter.device)
        return [self.state[parameter]["step"] for parameter in parameters]


def local(tensor: Tensor) -> Tensor:
    """The values on this rank, sharing memory: of a tensor that is cut over the ranks its part, of any other itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
