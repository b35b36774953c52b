"""Options of fsdp and hsdp: what they change (memory, dtypes of communication) and what not (the curve); what does not fit."""

from __future__ import annotations

import pytest

from tests import tiny
from tests.distributed import run_distributed
from tests.strategies.test_proof import prober
from trainer.bench.syncs import HostSyncs
from trainer.checkpoint.boxes import Box, untiled
from trainer.choices import ConfigError, find, load_choices
from trainer.strategies.proof import prove

SAME = [{}, {"reshard_after_forward": False, "prefetch": 1}, {"reshard_after_forward": 2}, {"cpu_offload": True}]
LOWER = {"param_dtype": "bfloat16", "reduce_dtype": "bfloat16"}


def trained(world, strategy, choices):
    found = []
    for options in choices:
        placement = tiny.place(strategy, "gpt", world, precision="bf16" if "param_dtype" in options else "fp32", **options)
        prove(placement, prober(placement, "gpt"), world)
        seen = tiny.train(placement, "gpt", range(3), micro_batches=2, max_norm=0.5)
        with HostSyncs() as counted:
            tiny.backward(placement, "gpt", 3, 1)
            placement.finish(1.0, 0.5)
        boxes = [(piece.name, piece.kind, piece.shape, *map(list, piece.box)) for piece in placement.pieces()]
        dtypes = {row["kind"]: row["dtype"] for row in placement.state_table()}
        found.append({"losses": seen["losses"], "norms": seen["norms"], "dtypes": dtypes, "boxes": boxes, "syncs": counted.total})
    return found


def test_options_of_fsdp_change_no_number():
    ranks = run_distributed(trained, 4, "fsdp", [*SAME, LOWER])
    for found in ranks:
        for other in found[: len(SAME)]:
            assert other["losses"] == found[0]["losses"] and other["norms"] == found[0]["norms"] and other["syncs"] == 0
        assert set(found[0]["dtypes"].values()) == {"float32"}
        # Only what goes over the wire is lower; masters, gradients and moments are not.
        assert {kind for kind, dtype in found[-1]["dtypes"].items() if dtype == "bfloat16"} == {"reduction"}
        assert found[-1]["losses"] != found[0]["losses"] and found[-1]["losses"] == pytest.approx(found[0]["losses"], rel=5e-3)


def test_c16_replicas_share_the_writing_and_have_one_norm():
    """Of two replicas of two ranks, each element is written once, by all ranks in about equal parts; the norm is that of one process."""
    alone = run_distributed(trained, 1, "single", [{}], group=False)[0][0]
    ranks = [found[0] for found in run_distributed(trained, 4, "hsdp", [{}])]
    tensors, written = {}, []
    for found in ranks:
        assert found["norms"] == ranks[0]["norms"] == pytest.approx(alone["norms"], rel=1e-4) and found["syncs"] == 0
        written.append(0)
        for name, kind, shape, offset, lengths in found["boxes"]:
            box = Box(tuple(offset), tuple(lengths))
            tensors.setdefault((name, kind, tuple(shape)), []).append(box)
            written[-1] += box.size
    assert all(untiled(shape, boxes) is None for (_, _, shape), boxes in tensors.items())
    assert max(written) < 1.1 * min(written)


@pytest.mark.parametrize(
    ("strategy", "options", "told"),
    [
        ("hsdp", {"shard_size": 3}, r"strategy\.shard_size: 3 does not divide 8 processes into groups; allowed: 1, 2, 4, 8"),
        ("hsdp", {"reshard_after_forward": 4}, r"strategy\.reshard_after_forward: 4 does not divide the 4 processes"),
        ("fsdp", {"reshard_after_forward": 3}, r"strategy\.reshard_after_forward: 3 does not divide the 8 processes"),
        ("fsdp", {"reshard_after_forward": "yes"}, r"strategy\.reshard_after_forward: yes; allowed: true, false"),
        ("fsdp", {"param_dtype": "float16"}, r"strategy\.param_dtype: float16; allowed: float32, bfloat16"),
        ("hsdp", {"prefetch": -1}, r"strategy\.prefetch: -1; allowed: 0 or more"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_launch(strategy, options, told):
    load_choices()
    with pytest.raises(ConfigError, match=told):
        find("strategy", strategy)(**options).fits(8, 4)
