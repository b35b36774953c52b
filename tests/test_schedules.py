"""Schedules at known points; each is a pure function of the batch index and the budget."""

import itertools
import math

import pytest

from trainer.choices import ConfigError
from trainer.schedules import WSD, Constant, Cosine, CosineRestarts, Linear, OneCycle, Polynomial, Shape

STEPS = 1000

# Schedule, and its factor at some indices of 1000; 1000 is what would follow the last step.
KNOWN = [
    (Constant(warmup=0.1), {0: 0.01, 49: 0.5, 99: 1.0, 100: 1.0, 999: 1.0}),
    (Linear(warmup=0.0, min_factor=0.2), {0: 1.0, 250: 0.8, 500: 0.6, 1000: 0.2}),
    (Cosine(warmup=0.2), {199: 1.0, 200: 1.0, 400: 0.5 + 0.5 * math.cos(math.pi / 4), 600: 0.5, 1000: 0.0}),
    (Polynomial(warmup=0.0, power=2.0), {0: 1.0, 500: 0.25, 900: 0.01, 1000: 0.0}),
    (Polynomial(warmup=0.0, power=1.0, min_factor=0.5), {500: 0.75}),
    (CosineRestarts(warmup=0.0, cycles=4), {0: 1.0, 125: 0.5, 249: 3.95e-5, 250: 1.0, 375: 0.5, 750: 1.0, 1000: 0.0}),
    (CosineRestarts(warmup=0.3, cycles=3, growth=2.0), {300: 1.0, 350: 0.5, 400: 1.0, 500: 0.5, 600: 1.0, 800: 0.5, 1000: 0.0}),
    (WSD(warmup=0.1, decay_share=0.2), {9: 0.1, 99: 1.0, 799: 1.0, 800: 1.0, 900: 0.5, 950: 0.25, 1000: 0.0}),
    (WSD(decay_share=0.2, shape=Shape.sqrt, min_factor=0.1), {800: 1.0, 850: 0.1 + 0.9 * 0.5, 1000: 0.1}),
    (WSD(decay_share=0.2, shape=Shape.cosine), {850: 0.5 + 0.5 * math.cos(math.pi / 4), 900: 0.5}),
    (WSD(decay_share=0.3, shape=Shape.exponential), {700: 1.0, 800: (0.1 - 0.001) / 0.999, 900: (0.01 - 0.001) / 0.999, 1000: 0.0}),
    (WSD(warmup=0.0, decay_share=1.0), {0: 1.0, 500: 0.5}),
    (WSD(warmup=0.0, decay_share=0.0), {0: 1.0, 1000: 1.0}),
    (OneCycle(warmup=0.3, start_factor=0.04, min_factor=0.01), {0: 0.04, 150: 0.52, 300: 1.0, 650: 0.505, 1000: 0.01}),
]  # fmt: skip


@pytest.mark.parametrize(("schedule", "points"), KNOWN, ids=lambda value: getattr(value, "name", ""))
def test_c03_a_schedule_has_its_value_at_every_index(schedule, points):
    for step, factor in points.items():
        assert schedule.factor(step, STEPS) == pytest.approx(factor, abs=1e-6), step
    everywhere = [schedule.factor(step, STEPS) for step in range(STEPS)]
    # Asked in any order it says the same; nothing jumps but a restart; the peak is the base rate.
    assert [schedule.factor(step, STEPS) for step in reversed(range(STEPS))] == everywhere[::-1]
    jumps = sum(abs(after - before) > 0.1 for before, after in itertools.pairwise(everywhere))
    assert jumps == (schedule.cycles - 1 if isinstance(schedule, CosineRestarts) else 0)
    assert max(everywhere) == pytest.approx(1.0, abs=1e-6) and min(everywhere) >= 0.0
    assert all(math.isfinite(schedule.factor(step, steps)) for steps in (1, 2, 3) for step in range(steps))


def test_until_it_decays_wsd_does_not_know_its_budget():
    short, long = WSD(warmup=0.02), WSD(warmup=0.01)
    assert [short.factor(step, 1000) for step in range(800)] == [long.factor(step, 2000) for step in range(800)]


@pytest.mark.parametrize(("build", "words"), [
    (lambda: WSD(warmup=0.5, decay_share=0.6), "schedule.decay_share: 0.6 and schedule.warmup: 0.5 are more than the whole"),
    (lambda: CosineRestarts(cycles=0), "schedule.cycles: 0"), (lambda: Polynomial(power=0.0), "schedule.power: 0.0"),
    (lambda: OneCycle(start_factor=2.0), "schedule.start_factor: 2.0"),
])  # fmt: skip
def test_shares_that_cannot_be_are_refused(build, words):
    with pytest.raises(ConfigError, match=words):
        build()
