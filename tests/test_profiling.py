"""profile.steps: the trace holds the steps that were asked for, the curve does not notice, and the report shows what was expensive."""

from __future__ import annotations

import contextlib
import gzip
import json
from pathlib import Path

import pytest
import torch

from tests.loops import StopAfter, losses, ready, single, training, write_texts
from trainer import compose
from trainer.choices import ConfigError
from trainer.distributed import World
from trainer.profiling import Profiler, profiling
from trainer.settings import DefaultProfile
from trainer.tracking.report import write


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"), 12)


def steps_in(path: Path) -> list[str]:
    """The marks of steps in a Chrome trace, in their order."""
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    marks = [event for event in events if event.get("cat") == "user_annotation" and str(event["name"]).startswith("step ")]
    return [event["name"] for event in sorted(marks, key=lambda event: event["ts"])]


def test_the_steps_asked_for_are_traced_and_the_curve_is_the_same(tmp_path, texts):
    plain, traced = (ready(tmp_path, texts, *words, name=name) for name, words in (("plain", ()), ("traced", ("profile.steps=3:4",))))
    for path in (plain, traced):
        training(single(), path).loop()
    assert losses(plain) == losses(traced)
    assert not (plain / "profile").exists()
    folder = traced / "profile"
    assert sorted(path.name for path in folder.iterdir()) == ["operations-rank-0.json", "trace-rank-0.json.gz"]
    assert steps_in(folder / "trace-rank-0.json.gz") == ["step 3", "step 4"]

    facts = json.loads((folder / "operations-rank-0.json").read_text())
    found = facts["operations"]
    assert facts["steps"] == [3, 4] and len(found) == 10
    # One layer of GPT-2: four linear layers, forward.
    assert next(each for each in found if each["name"] == "aten::addmm")["calls"] == 4 * 2, "two micro-batches a step"
    times = [each["milliseconds"] for each in found]
    assert times == sorted(times, reverse=True) and 0.3 < sum(each["share"] for each in found) <= 1
    held = [size for _, size in facts["memory"]]
    assert max(held) > 100_000 and 1 < len(held) <= 600

    page = write(traced).read_text()
    assert "steps 3 to 4, rank 0, time on the CPU" in page and "aten::addmm" in page and "Memory of tensors" in page
    assert "Profile" not in write(plain).read_text()


def test_a_run_that_stops_within_the_window_keeps_what_was_traced(tmp_path, texts):
    path = ready(tmp_path, texts, "profile.steps=2:90", "profile.memory=false")
    training(single(), path, StopAfter(3)).loop()
    assert steps_in(path / "profile" / "trace-rank-0.json.gz") == ["step 2", "step 3"]
    again = training(single(), path)
    again.loop()
    assert steps_in(path / "profile" / "trace-rank-0.json.gz") == ["step 4", "step 5", "step 6"], "and a resume goes on with it"


@pytest.mark.parametrize(
    ("rank", "settings", "traces"),
    [(0, {}, False), (1, {"steps": "1:2"}, False), (0, {"steps": "1:2"}, True), (1, {"steps": "1:2", "all_ranks": True}, True)],
)
def test_who_is_traced(tmp_path, rank, settings, traces):
    world = World(rank, 2, rank, 2, torch.device("cpu"))
    with profiling(DefaultProfile(**settings), tmp_path, world, contextlib.nullcontext, print) as profiler:
        assert (type(profiler) is not Profiler) is traces


def test_a_trace_that_cannot_be_written_is_told_and_stops_nothing(tmp_path):
    (tmp_path / "profile").write_text("a file where the folder would be")
    said: list[str] = []
    world = World(0, 1, 0, 1, torch.device("cpu"))
    with profiling(DefaultProfile(steps="1:1"), tmp_path, world, contextlib.nullcontext, said.append) as profiler:
        profiler.at(1)
        profiler.at(2)
    assert len(said) == 1 and said[0].startswith("no profile: ")


@pytest.mark.parametrize("value", ["10", "15:10", "0:3", "1:200", "a:b"])
def test_b01_steps_that_are_none_are_told(value):
    with pytest.raises(ConfigError, match=r"profile\.steps: .*FIRST:LAST"):
        compose("steps=5", f"profile.steps={value}")
