"""A moving average of the weights, kept as one more kind of an optimizer's state: whatever a rank holds of a parameter, it averages.

So it is cut, counted, saved and read like a moment, under every strategy, and needs nothing of a strategy but `Placement.averaged`.
"""

from __future__ import annotations

from typing import Any

import torch

from trainer.optimizers.on_device import local

KIND = "ema"
_COUNT = "ema_step"


def keep_average(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """From now on every step of the optimizer updates the averages: a ← d a + (1 − d) θ, on the device, in applied steps only.

    d rises as (1 + t) ⁄ (10 + t) with the updates t up to `decay`, so that the first weights are soon forgotten.
    """

    @torch.no_grad()
    def after_step(stepped: Any, args: Any, kwargs: Any) -> None:
        dropped = getattr(stepped, "found_inf", None)
        for group in stepped.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if KIND not in stepped.state[parameter]:
                    stepped.state[parameter][KIND] = parameter.detach().clone()
                    stepped.state[parameter][_COUNT] = torch.zeros((), device=parameter.device)
            counts = [stepped.state[parameter][_COUNT] for parameter in parameters]
            if not counts:
                continue
            applied = 1.0 if dropped is None else 1.0 - dropped
            weight = (1.0 - ((1 + counts[0]) / (10 + counts[0])).clamp(max=decay)) * applied
            for parameter in parameters:
                local(stepped.state[parameter][KIND]).lerp_(local(parameter.detach()), weight)
            torch._foreach_add_(counts, applied)

    optimizer.register_step_post_hook(after_step)


@torch.no_grad()
def exchange_averages(optimizer: torch.optim.Optimizer) -> None:
    """Put the averages in the parameters' place and the parameters in theirs; done twice, it has changed nothing."""
    for parameter, state in optimizer.state.items():
        if KIND in state:
            values, averages = local(parameter.detach()), local(state[KIND])
            aside = values.clone()
            values.copy_(averages)
            averages.copy_(aside)
