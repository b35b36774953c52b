"""precision=fp8: products of the blocks in 8 bits, near those in full, and a curve near that of bf16."""

import pytest
import torch

from tests import tiny
from tests.distributed import run_distributed
from tests.loops import single
from trainer.choices import ConfigError
from trainer.models.fp8 import Float8Product, Scaled, product, use_fp8


def apart(one, other):
    return ((one - other).norm() / other.norm()).item()


@pytest.fixture(scope="module")
def place(device):
    """A device that multiplies in 8 bits."""
    if device == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no 8-bit floats")
    return device


@pytest.mark.parametrize("by_rows", [False, True])
def test_products_and_gradients_are_near_those_in_full(by_rows, place):
    draw = torch.Generator().manual_seed(0)
    inputs, weight, above = (torch.randn(*sizes, generator=draw).to(place) for sizes in ((32, 48), (64, 48), (32, 64)))
    inputs, weight = (inputs * 300).requires_grad_(), (weight.t().contiguous() if by_rows else weight).requires_grad_()
    found = Float8Product.apply(inputs, weight, by_rows, torch.float32)
    wanted = inputs @ (weight if by_rows else weight.t())
    # e4m3 has 3 bits behind the point and e5m2 2: errors of 2⁻⁴ and 2⁻³ of a value at most, which are of either sign.
    assert 0.005 < apart(found, wanted) < 0.06
    for one, other in zip(
        torch.autograd.grad(found, (inputs, weight), above), torch.autograd.grad(wanted, (inputs, weight), above), strict=True
    ):
        assert one.shape == other.shape and 0.005 < apart(one, other) < 0.1


def test_what_is_not_finite_stays_so(place):
    values = torch.ones(16, 16, device=place)
    values[0, 1] = torch.inf
    matrix = Scaled.of(torch.eye(16, device=place), torch.float8_e4m3fn)
    assert not product(Scaled.of(values, torch.float8_e5m2), matrix, torch.float32).isfinite().any()
    assert Scaled.of(torch.zeros(2, 2, device=place), torch.float8_e4m3fn).values.float().abs().sum() == 0


def test_the_arithmetic_is_that_of_torch_s_own_kernel(place):
    """Of the device, beside what a CPU computes here; its sums over what is already rounded differ by noise."""
    draw = torch.Generator().manual_seed(0)
    one, other = (Scaled.of(torch.randn(32, 64, generator=draw), torch.float8_e4m3fn) for _ in range(2))
    given, matrix = (Scaled(each.values.to(place), each.scale.to(place)) for each in (one, other))
    try:
        theirs = torch._scaled_mm(given.values, matrix.values.t(), scale_a=given.scale, scale_b=matrix.scale, out_dtype=torch.float32).cpu()
    except (RuntimeError, NotImplementedError) as error:
        if place != "cpu":
            raise
        pytest.skip(f"this torch multiplies no 8-bit floats on a CPU: {error}")
    assert apart(product(one, other, torch.float32), theirs) < 1e-3


def test_the_curve_is_near_that_of_bf16():
    """Ragged rows, GPT-2's transposed layers; in both the loss falls, and never differs by more than a hundredth."""
    placed = {precision: tiny.place("single", "gpt", single(), precision=precision) for precision in ("bf16", "fp8")}
    curves = {precision: tiny.train(placement, "gpt", range(12))["losses"] for precision, placement in placed.items()}
    assert curves["fp8"] == pytest.approx(curves["bf16"], rel=1e-2) and curves["fp8"] != curves["bf16"]
    assert curves["fp8"][-1] < 0.95 * curves["fp8"][0]
    assert all(piece.tensor.dtype == torch.float32 for piece in placed["fp8"].pieces())


def trained(world, strategy):
    return tiny.train(tiny.place(strategy, "gpt", world, precision="fp8"), "gpt", range(6), micro_batches=2)["losses"]


@pytest.mark.parametrize("strategy", ["zero3", "fsdp"])
def test_the_curve_of_two_ranks_is_near_that_of_one(strategy):
    """Not equal, as a rank scales by the largest of its own values; where parameters are cut, each weight is whole again in backward."""
    wanted = tiny.train(tiny.place("single", "gpt", single(), precision="fp8"), "gpt", range(6))["losses"]
    for losses in run_distributed(trained, 2, strategy):
        assert losses == pytest.approx(wanted, rel=1e-2) and losses[-1] < 0.98 * losses[0]


def test_a_model_without_a_layer_that_fits_is_refused():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=8, n_embd=24, n_layer=1, n_head=2))
    with pytest.raises(ConfigError, match=r"precision: fp8; .*multiples of 16"):
        use_fp8(model)
