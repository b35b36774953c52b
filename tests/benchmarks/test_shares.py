"""benchmarks/shares.py on a tiny model: shares are those of theory, and no rank ever has more than its share and the largest tensor."""

from benchmarks import shares

TINY = {"layers": 4, "hidden": 64, "heads": 2, "positions": 64}


def test_no_rank_holds_more_than_its_share_and_one_tensor():
    rows = shares.measured(["fsdp"], [4], TINY, 512)
    (row,) = rows
    assert not shares.problems(rows), row
    assert row["allowed"] < 0.5 * row["whole"], "or the whole model would be allowed"
    assert all(0.1 * row["allowed"] < peak for peak in row["peaks"].values()), "nothing was counted"
    assert {"parameter", "gradient", "exp_avg", "exp_avg_sq"} == row["held"].keys() and "fsdp × 4" in shares.markdown(rows)
