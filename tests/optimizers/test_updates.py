"""Every optimizer of ours against its paper's equations, written out plainly for one tensor at a time, in fp64."""

import copy
import math

import pytest
import torch

from trainer import optim
from trainer.strategies.torch_driven import prime, step

RATE, STEPS = 3e-2, 5


def lion(value, gradient, state, t, decays, choice):
    average = state.setdefault("exp_avg", torch.zeros_like(value))
    direction = torch.sign(choice.beta1 * average + (1 - choice.beta1) * gradient)
    state["exp_avg"] = choice.beta2 * average + (1 - choice.beta2) * gradient
    return value - RATE * (direction + (choice.weight_decay if decays else 0.0) * value)


def sgd(value, gradient, state, t, decays, choice):
    gradient = gradient + (choice.weight_decay if decays else 0.0) * value
    if not choice.momentum:
        return value - RATE * gradient
    state["momentum"] = choice.momentum * state.get("momentum", 0.0) + gradient
    return value - RATE * (gradient + choice.momentum * state["momentum"] if choice.nesterov else state["momentum"])


def lamb(value, gradient, state, t, decays, choice):
    state["exp_avg"] = choice.beta1 * state.get("exp_avg", 0.0) + (1 - choice.beta1) * gradient
    state["exp_avg_sq"] = choice.beta2 * state.get("exp_avg_sq", 0.0) + (1 - choice.beta2) * gradient**2
    mean, square = state["exp_avg"] / (1 - choice.beta1**t), state["exp_avg_sq"] / (1 - choice.beta2**t)
    direction = mean / (square.sqrt() + choice.eps) + (choice.weight_decay * value if decays else 0.0)
    ratio = value.norm() / direction.norm() if decays else 1.0
    return value - RATE * ratio * direction


def adafactor(value, gradient, state, t, decays, choice):
    old, new = 1 - t**-choice.decay_power, t**-choice.decay_power
    squares = gradient**2 + 1e-30
    if value.ndim >= 2:
        state["row"] = old * state.get("row", 0.0) + new * squares.sum(-1)
        state["column"] = old * state.get("column", 0.0) + new * squares.sum(-2)
        second = torch.einsum("...r,...c->...rc", state["row"], state["column"]) / state["row"].sum(-1)[..., None, None]
    else:
        second = state["exp_avg_sq"] = old * state.get("exp_avg_sq", 0.0) + new * squares
    update = gradient / second.sqrt()
    update = update / max(1.0, float(update.square().mean().sqrt()) / choice.clip_threshold)
    scale = max(choice.least_scale, float(value.square().mean().sqrt()))
    return value - RATE * scale * update - RATE * (choice.weight_decay if decays else 0.0) * value


CASES = {
    "adafactor": (optim.Adafactor(lr=RATE, weight_decay=0.1), adafactor),
    "lamb": (optim.Lamb(lr=RATE, weight_decay=0.1), lamb),
    "lion": (optim.Lion(lr=RATE, weight_decay=0.3), lion),
    "sgd": (optim.SGD(lr=RATE, weight_decay=0.02), sgd),
    "nesterov": (optim.SGD(lr=RATE, weight_decay=0.02, nesterov=True), sgd),
    "without momentum": (optim.SGD(lr=RATE, momentum=0.0), sgd),
}


def parameters():
    torch.manual_seed(0)
    shapes = {"wte.weight": (12, 8), "h.0.attn.weight": (8, 24), "h.0.mlp.weight": (32, 8), "h.0.conv": (3, 4, 5), "ln.weight": (8,)}
    return [(name, torch.nn.Parameter(0.3 * torch.randn(shape))) for name, shape in shapes.items()]


@pytest.mark.parametrize("case", CASES)
def test_an_update_is_that_of_the_paper(case):
    choice, reference = CASES[case]
    named = parameters()
    built = choice.build(iter(named))
    prime(built)
    wanted = {name: parameter.detach().double() for name, parameter in named}
    states = {name: {} for name in wanted}
    for t in range(1, STEPS + 1):
        torch.manual_seed(t)
        # Gradients of quite different sizes, scaled up by 16 as a clipped step's would be.
        for number, (name, parameter) in enumerate(named):
            gradient = torch.randn_like(parameter) * 10.0 ** (number - 2)
            wanted[name] = reference(wanted[name], gradient.double(), states[name], t, parameter.ndim >= 2, choice)
            parameter.grad = 16 * gradient
        step(built, torch.zeros(()), torch.tensor(16.0))
    for name, parameter in named:
        moved = (wanted[name] - dict(parameters())[name].double()).norm()
        # What fp32 can hold of the values, and of the way they came.
        noise = 3e-7 * wanted[name].norm() + 1e-5 * moved
        assert moved > 100 * noise and (parameter.double() - wanted[name]).norm() < noise, name


@pytest.mark.parametrize("case", CASES)
def test_c18_a_dropped_step_changes_nothing(case):
    """Not a bit of a parameter or of its state, whatever the gradient, also where the step before had made some."""
    named = parameters()
    built = CASES[case][0].build(iter(named))
    for factor, dropped in ((1.0, 0.0), (math.nan, 1.0), (math.inf, 1.0)):
        before = copy.deepcopy([built.state_dict()["state"], [parameter.detach() for _, parameter in named]])
        for _, parameter in named:
            parameter.grad = torch.randn_like(parameter) * factor
        step(built, torch.tensor(dropped), torch.tensor(factor))
        after = [built.state_dict()["state"], [parameter.detach() for _, parameter in named]]
        same = all(torch.equal(one, other) for one, other in zip(leaves(before), leaves(after), strict=True)) if dropped else True
        assert same and all(tensor.isfinite().all() for tensor in leaves(after))


def leaves(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [leaf for item in (tree.values() if isinstance(tree, dict) else tree) for leaf in leaves(item)]
