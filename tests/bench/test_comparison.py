"""Two benches beside each other: what is noise is not called a difference, what is none is; and what else differs is told."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainer.bench.cells import UNKNOWN, Cell, Plan, State
from trainer.bench.comparison import Verdict, compare, ratio_of
from trainer.bench.conditions import conditions
from trainer.bench.results import Results, load
from trainer.bench.scaling import curves
from trainer.bench.tables import verdict
from trainer.choices import ConfigError
from trainer.cli import main

SETTINGS = {"model": "gpt2_tiny", "strategy": "ddp", "precision": "fp32", "processes": "1"}


def cell(rates: list[float], label: str = "", **settings: str) -> Cell:
    repeats = [{"tokens_per_second": rate, "clock": "host"} for rate in rates]
    found = Cell(SETTINGS | settings, [], label=label or " ".join(settings.values()), state=State.measured, micro_batch=4, repeats=repeats)
    found.world = int(found.settings["processes"])
    return found


def results(*cells: Cell, **conditions: str) -> Results:
    about = {"device": "CPU", "devices": 0, "cores": 2, "memory_bytes": 1 << 30, "commit": "abc", "versions": {"torch": "2.13.0"}}
    return Results("bench-x", "trainer bench", Plan(), about | conditions, list(cells))


def noisy(draw: np.random.Generator, middle: float, noise: float, repeats: int = 5) -> list[float]:
    return list(middle * np.exp(draw.normal(0, noise, repeats)))


def test_what_is_equal_is_rarely_called_a_regression() -> None:
    draw = np.random.default_rng(0)
    slower = regressions = 0
    for _ in range(400):
        found = compare(results(cell(noisy(draw, 1000, 0.05))), results(cell(noisy(draw, 1000, 0.05))))
        slower += found.pairs[0].ratio.verdict is not Verdict.same
        regressions += bool(found.regressions)
    assert 4 <= slower <= 36, "about one in twenty is outside of an interval of 95 %"
    assert regressions <= 18, "of these, half are slower"


def test_many_cells_do_not_make_a_regression_by_chance() -> None:
    draw = np.random.default_rng(1)

    def bench() -> Results:
        return results(*(cell(noisy(draw, 1000, 0.05), precision=str(number)) for number in range(20)))

    assert sum(bool(compare(bench(), bench()).regressions) for _ in range(50)) <= 5, "one of twenty cells would be in two of three benches"


def test_a_real_loss_is_found_and_one_below_the_threshold_is_let_pass() -> None:
    draw = np.random.default_rng(2)
    before = results(cell(noisy(draw, 1000, 0.01)))
    (lost,) = compare(before, results(cell(noisy(draw, 900, 0.01)))).pairs
    assert lost.regression and lost.ratio.verdict is Verdict.slower and lost.ratio.low < 0.9 < lost.ratio.high < 0.95  # type: ignore[operator]
    (small,) = compare(before, results(cell([rate * 0.98 for rate in noisy(draw, 1000, 1e-4)])), threshold=0.1).pairs
    assert not small.regression
    (gained,) = compare(before, results(cell(noisy(draw, 1100, 0.01)))).pairs
    assert gained.ratio.verdict is Verdict.faster and not gained.regression


def test_the_interval_is_welchs() -> None:
    first, second = [10.0, 11.0, 12.0, 10.5], [9.0, 9.2, 9.1]
    interval = stats.ttest_ind(np.log(second), np.log(first), equal_var=False).confidence_interval(0.9)
    ratio = ratio_of(first, second, 0.9)
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(interval.low), math.exp(interval.high)))


rates = st.lists(st.floats(1.0, 1e6), min_size=2, max_size=8)


@given(rates, rates, st.floats(0.1, 10.0))
def test_ratios_are_those_of_the_rates_in_either_direction_and_any_unit(first: list[float], second: list[float], unit: float) -> None:
    ratio, back = ratio_of(first, second), ratio_of(second, first)
    assert math.isclose(ratio.ratio * back.ratio, 1, rel_tol=1e-9)
    assert ratio.low is not None and ratio.high is not None and back.high is not None
    assert ratio.low <= ratio.ratio * (1 + 1e-9) and ratio.ratio <= ratio.high * (1 + 1e-9)
    assert math.isclose(ratio.low * back.high, 1, rel_tol=1e-6) or ratio.low < 1e-300
    scaled = ratio_of([rate * unit for rate in first], [rate * unit for rate in second])
    assert math.isclose(scaled.ratio, ratio.ratio, rel_tol=1e-9)


def test_one_repeat_says_nothing() -> None:
    found = compare(results(cell([1000.0])), results(cell([500.0])))
    (pair,) = found.pairs
    assert pair.ratio.verdict is Verdict.unknown and pair.ratio.ratio == pytest.approx(0.5) and not pair.regression
    assert not found.passes and verdict(found) == "no verdict: all cells have too few repeats; each needs two or more in both benches"
    # Beside one of which something can be said, that is told.
    one = (cell([1000.0, 1001.0], precision="bf16"), cell([1000.0]))
    found = compare(results(*one), results(*one))
    assert found.passes and "no cell of 1 is slower" in verdict(found) and "1 cells have too few repeats" in verdict(found)


def test_a_cell_that_was_measured_before_and_is_not_any_more_is_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def bench(name: str, *ends: tuple[State, list[float], str]) -> str:
        cells = [cell(rates, label=str(number), sequence_length=str(number)) for number, (_, rates, _) in enumerate(ends)]
        for one, (state, _, reason) in zip(cells, ends, strict=True):
            one.state, one.reason = state, reason
        if ends[-1][0] is State.refused:
            cells[-1].settings["processes"] = UNKNOWN  # refused before it was known
        results(*cells).write(tmp_path / name)
        return str(tmp_path / name)

    good = (State.measured, [1000.0, 1001.0], "")
    before = bench("before", good, good)
    for state, rates, reason in (
        (State.failed, [], "it fell over"),
        (State.failed, [1000.0, 1001.0], "in its last repeat"),
        (State.no_memory, [], "CUDA out of memory"),
        (State.refused, [], "precision: no"),
    ):
        after = bench("after", good, (state, rates, reason))
        assert main(["bench", "compare", before, after]) == 1, state
        told = capsys.readouterr().out
        assert f"1: {state.value}: {reason}, a regression" in told and "1 of the cells that" in told and "only in" not in told
        # What was no better before is none.
        assert main(["bench", "compare", after, after]) == 0, state
        capsys.readouterr()
    assert main(["bench", "compare", bench("after", good), before]) == 0
    assert main(["bench", "compare", before, bench("after", good)]) == 0, "another bench may have fewer cells"
    assert "only in the first: 1" in capsys.readouterr().out
    assert main(["bench", "compare", before, bench("after", good, (State.pending, [], ""))]) == 1
    assert "1: not measured yet, a regression" in capsys.readouterr().out


def test_what_else_differs_is_told_and_cells_are_matched_by_their_settings() -> None:
    first = results(cell([1.0, 1.1], precision="fp32"), cell([2.0, 2.1], precision="bf16"), device="H200")
    second = results(cell([1.0, 1.1], precision="fp32"), cell([3.0, 3.1], strategy="zero2"), commit="def")
    second.conditions["versions"] = {"torch": "2.11.0"}
    found = compare(first, second)
    assert [pair.label for pair in found.pairs] == ["fp32"]
    assert found.alone == ["only in the second: zero2", "only in the first: bf16"]
    assert found.warnings == ["device: H200, CPU", "commit: abc, def", "version of torch: 2.13.0, 2.11.0"]
    # A setting that is common to all cells of a bench may be other in the other: that is what one compares, and it is told.
    found = compare(results(cell([1.0, 1.1], label="x", optim="adamw")), results(cell([1.0, 1.1], label="x", optim="muon")))
    assert len(found.pairs) == 1 and found.warnings == ["optim: adamw, muon"]
    with pytest.raises(ConfigError, match="no cell in common; only in the second: zero2"):
        compare(results(cell([1.0], precision="bf16")), results(cell([1.0], strategy="zero2")))


def test_another_driver_and_a_capped_gpu_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(torch.version, "cuda", "13.0")

    def seen(*lines: str) -> Results:
        told = "\n".join(lines)
        command.write_text(f"#!/bin/sh\ncase $1 in *driver*) echo '{told}';; *name*) echo 'NVIDIA H200, 9.0';; esac\n")
        command.chmod(0o755)
        found = results(cell([1.0, 1.1]))
        found.conditions = conditions("cuda")
        return found

    before = seen("580.65, 700.00 W, 700.00 W, [N/A], 1980 MHz", "580.65, 700.00 W, 700.00 W, [N/A], 1980 MHz")
    about = before.conditions
    assert (about["device"], about["driver"], about["power_limit"], about["clocks"]) == ("NVIDIA H200", "580.65", "700.00 W", "1980 MHz")
    assert {"cuda": "13.0"}.items() <= about["versions"].items()
    after = seen("590.44, 700.00 W, 700.00 W, 1980 MHz, 1980 MHz", "590.44, 500.00 W, 700.00 W, 1500 MHz, 1980 MHz")
    assert compare(before, after).warnings == [
        "driver: 580.65, 590.44",
        "power_limit: 700.00 W, 700.00 W + 500.00 W of 700.00 W",
        "clocks: 1980 MHz, 1980 MHz + 1500 MHz of 1980 MHz",
    ]
    assert "driver" not in seen('Field "driver_version" is not a valid field to query.').conditions


def test_the_exit_code_of_compare_is_that_of_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(3)
    for name, middle in (("a", 1000), ("b", 800)):
        results(cell(noisy(draw, middle, 0.01), label="tiny")).write(tmp_path / name)
    assert main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "b" / "results.json")]) == 1
    told = capsys.readouterr().out
    assert "slower, a regression" in told and "1 of 1 cells slower by more than 3%" in told
    assert main(["bench", "compare", str(tmp_path / "b"), str(tmp_path / "a")]) == 0
    assert main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "b"), "threshold=0.3"]) == 0
    assert main(["bench", "compare", str(tmp_path / "a"), str(tmp_path / "b"), "figure=mfy"]) == 1
    assert "did you mean 'mfu'" in capsys.readouterr().err
    for words, problem in (([str(tmp_path / "a")], "name two benches"), ([str(tmp_path), str(tmp_path / "a")], "no results of a bench")):
        assert main(["bench", "compare", *words]) == 1
        assert problem in capsys.readouterr().err
    (tmp_path / "c.json").write_text("[1]")
    with pytest.raises(ConfigError, match="not the results of a bench"):
        load(tmp_path / "c.json")


def test_efficiency_is_of_the_fewest_processes_repeat_by_repeat() -> None:
    # The machine was twice as fast in the second round: both cells of a round have that in common.
    cells = [cell([100.0, 200.0], processes="1"), cell([180.0, 360.0], processes="2"), cell([7.0], precision="bf16")]
    (curve,) = curves(cells)
    assert [point.cell.world for point in curve] == [1, 2]
    assert curve[1].efficiency.median == pytest.approx(0.9) and curve[1].efficiency.low == pytest.approx(curve[1].efficiency.high)
