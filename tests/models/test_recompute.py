"""Recomputed blocks: the same loss and gradients to the last bit, in less memory, under every strategy."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from tests import tiny
from tests.distributed import run_distributed
from trainer.choices import ConfigError
from trainer.composition import compose
from trainer.config import Recompute
from trainer.models.blocks import blocks
from trainer.models.recompute import recompute_blocks

OPTIONS = {
    "kept whole": Recompute(),
    "every block": Recompute(every=1),
    "every second": Recompute(every=2),
    "all but attention": Recompute(every=1, keep=["attention"]),
    "all but products": Recompute(every=1, keep=["attention", "matmul"]),
}


def saved_bytes(run):
    """What autograd keeps of a forward pass, by storage; and its result."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = (tensor.untyped_storage().nbytes(), tensor)  # held, so that no address comes again
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    return sum(size for size, _ in storages.values()), result


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_recomputed_blocks_have_the_same_gradients_in_less_memory(kind):
    found = {}
    for name, options in OPTIONS.items():
        module = tiny.module(kind, dropout=0.1)
        names = [parameter for parameter, _ in module.named_parameters()]
        recompute_blocks(module, options)
        assert [parameter for parameter, _ in module.named_parameters()] == names
        torch.manual_seed(3)
        batch = tiny.batch(kind, tiny.rows(0))
        size, sums = saved_bytes(lambda module=module, batch=batch: module(batch))
        counts = batch.targets
        tiny.objective(sums, kind, counts).backward()
        found[name] = (size, [sum(sums.values()).detach(), *(parameter.grad for parameter in module.parameters())])
        # An evaluation keeps nothing, and recomputes nothing.
        module.eval()
        with torch.no_grad():
            assert saved_bytes(lambda module=module, batch=batch: module(batch))[0] == 0
    sizes = {name: size for name, (size, _) in found.items()}
    assert sizes["every block"] < sizes["every second"] < sizes["kept whole"]
    assert sizes["every block"] < 0.6 * sizes["kept whole"], sizes
    for _, results in found.values():
        assert all(torch.equal(one, other) for one, other in zip(results, found["kept whole"][1], strict=True))


class Counting(torch.utils._python_dispatch.TorchDispatchMode):
    """How often operations run."""

    def __init__(self):
        super().__init__()
        self.seen = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func._schema.name] = self.seen.get(func._schema.name, 0) + 1
        return func(*args, **(kwargs or {}))


def test_what_is_kept_is_not_computed_again():
    counts = {}
    for name, options in OPTIONS.items():
        module = tiny.module("gpt")
        recompute_blocks(module, options)
        batch = tiny.batch("gpt", tiny.rows(0))
        with Counting() as counting:
            module(batch)["clm"].backward()
        attention = sum(count for op, count in counting.seen.items() if "attention" in op and "backward" not in op)
        counts[name] = (attention, counting.seen["aten::addmm"])
    whole, attention, products = counts["kept whole"], counts["all but attention"], counts["all but products"]
    # A block's last product is not needed again, as nothing after it in the block is.
    again = 2 * whole[1] - 2
    assert counts["every block"] == (2 * whole[0], again)
    assert attention == (whole[0], again) and products == whole


def trained(world, strategy, every):
    skeleton, options = tiny.skeleton, Recompute(every=every)

    def prepared(*arguments, **named):
        found = skeleton(*arguments, **named)
        recompute_blocks(found, options)
        return found

    tiny.skeleton = prepared
    try:
        placement = tiny.place(strategy, "gpt", world, dropout=0.1)
    finally:
        tiny.skeleton = skeleton
    assert any("forward" in vars(block) for block in blocks(placement.module)) == (every is not None)
    torch.manual_seed(world.rank)
    seen = tiny.train(placement, "gpt", range(4), micro_batches=2)
    return {"losses": seen["losses"], "weights": tiny.weights(placement)}


@pytest.mark.parametrize(("strategy", "world"), [("single", 1), ("ddp", 2), ("zero2", 2), ("zero3", 2), ("fsdp", 2)])
def test_recomputing_changes_nothing_under_any_strategy(strategy, world):
    plain, recomputed = (run_distributed(trained, world, strategy, every, group=strategy != "single")[0] for every in (None, 1))
    assert plain["losses"] == recomputed["losses"]
    assert all(torch.equal(plain["weights"][name], recomputed["weights"][name]) for name in plain["weights"])


@pytest.mark.parametrize(("words", "told"), [
    (["recompute.every=0"], "recompute.every: 0"),
    (["recompute.every=1", "recompute.keep=[norms]"], "recompute.keep: .*norms.*allowed: attention, matmul"),
    (["recompute.keep=[attention]"], "without recompute.every"),
])  # fmt: skip
def test_options_that_cannot_be_are_refused(words, told):
    with pytest.raises(ConfigError, match=told):
        compose("steps=1", *words)
