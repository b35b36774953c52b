"""Global batches that grow: every position once, from wherever one starts, in a size that its position alone decides."""

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.distributed import run_distributed
from tests.loops import ledger, lines, losses, ready, single, train, training, write_texts
from trainer.choices import ConfigError
from trainer.composition import compose
from trainer.config import BatchRamp
from trainer.data.batches import Batches, batches_of


def planned(global_batch, ramp, rows=100, row_tokens=10, **budget):
    config = SimpleNamespace(global_batch=global_batch, batch_ramp=ramp, **{"steps": None, "tokens": None, "epochs": None, **budget})

    class Split:
        epoch_tokens = rows * row_tokens

    split = Split()
    split.rows = range(rows)
    return batches_of(config, split)


ramps = st.integers(2, 64).flatmap(
    lambda size: st.tuples(
        st.just(size), st.builds(BatchRamp, start=st.integers(1, size - 1), share=st.floats(0.01, 1.0), stages=st.integers(1, 6))
    )
)
budgets = st.one_of(
    st.integers(1, 300).map(lambda steps: {"steps": steps}),
    st.floats(0.1, 30).map(lambda epochs: {"epochs": epochs}),
    st.integers(1, 20_000).map(lambda tokens: {"tokens": tokens}),
)


@settings(max_examples=60, deadline=None)
@given(ramps, budgets)
@example((2, BatchRamp(start=1, share=1.0, stages=2)), {"steps": 3})
def test_every_position_is_in_one_batch_wherever_one_starts(sized, budget):
    size, ramp = sized
    batches = planned(size, ramp, **budget)
    starts = list(batches.starts())
    stops = [batches.stop(start) for start in starts]
    assert starts[0] == 0 and stops[-1] == batches.total and starts[1:] == stops[:-1]
    assert len(starts) == batches.left() and ("steps" not in budget or len(starts) == budget["steps"])
    sizes = [stop - start for start, stop in zip(starts, stops, strict=True)]
    # Growing, but for a short last one; and full after the share of the steps that was asked for.
    assert sizes[:-1] == sorted(sizes[:-1]) and max(sizes) <= size
    rounding = ramp.stages / 2 + 1
    grown = sum(one < size for one in sizes[:-1])
    assert abs(grown - ramp.share * len(sizes)) <= rounding + (0 if "steps" in budget else ramp.share * rounding)
    if "steps" not in budget:
        assert batches.total == planned(size, BatchRamp(), **budget).total
    for step in range(0, len(starts), 7):
        assert list(batches.starts(starts[step])) == starts[step:] and batches.left(starts[step]) == len(starts) - step
    # From a position that is no batch's first, as after a changed budget, all that follows is covered too.
    rest = list(batches.starts(batches.total // 3))
    assert len(rest) == batches.left(batches.total // 3)


def test_without_a_ramp_all_batches_are_full():
    assert planned(8, BatchRamp(), steps=5) == Batches(40, 8) == planned(8, BatchRamp(start=2, share=0.01), steps=5)
    assert planned(8, BatchRamp(start=2, share=0.5, stages=3), steps=12) == Batches(2 * (2 + 4 + 6) + 48, 8, ((4, 2), (12, 4), (24, 6)))


@pytest.mark.parametrize("words", [["batch_ramp.start=8"], ["batch_ramp.start=0"], ["batch_ramp.share=0"], ["batch_ramp.stages=0"]])
def test_ramps_that_cannot_be_are_refused(words):
    with pytest.raises(ConfigError, match=words[0].split("=")[0]):
        compose("steps=10", "global_batch=8", *words)


def test_c09_c03_a_ramp_goes_on_at_another_world(tmp_path):
    """1 → 2 → 1 ranks, stopped amid the ramp and after it: the ledger, the sizes, the rates and the curve of the uninterrupted run."""
    (tmp_path / "texts").mkdir()
    texts = write_texts(tmp_path / "texts")
    words = ("epochs=2", "batch_ramp.start=2", "batch_ramp.share=0.5", "batch_ramp.stages=3")
    whole = ready(tmp_path, texts, *words, name="whole")
    train(single(), whole)
    batches = training(single(), whole).loader.batches
    starts = list(batches.starts())
    stops = {step: batches.stop(start) for step, start in enumerate(starts, 1)}
    assert [line["samples"] for line in lines(whole)] == list(stops.values()) and len({s for _, s in batches.ramp}) == 3
    inside, after = next(step for step, stop in stops.items() if stop > batches.ramp[0][0]), len(starts) - 2
    cut = tmp_path / "cut"
    for world, last in ((1, inside), (2, after), (1, None)):
        ready(tmp_path, texts, *words, f"strategy={'single' if world == 1 else 'ddp'}", name="cut", world=world)
        if world == 1:
            train(single(), cut, last)
        else:
            run_distributed(train, world, str(cut), last)
    assert Counter(ledger(cut)) == Counter(ledger(whole)) and set(Counter(ledger(cut)).values()) == {2}
    assert losses(cut) == pytest.approx(losses(whole), rel=1e-5)
    for key in ("learning_rate", "samples"):
        assert [line[key] for line in lines(cut, key)] == [line[key] for line in lines(whole, key)]
