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


def test_zero2_keeps_gradients_that_a_border_cuts():
    """Of 8 and 4 elements over two ranks, the first is cut after its sixth: whole on both."""
    assert [shares.cut_whole([8, 4], rank, 2) for rank in range(2)] == [8, 12]
    assert [shares.cut_whole([6, 6], rank, 2) for rank in range(2)] == [6, 6], "a border between two cuts none"
    assert shares.share("zero2", "gradient", 2, [[8, 4], [6, 6]]) == 4 * (12 + 6)
