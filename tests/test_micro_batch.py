"""`micro_batch=auto`: what is tried, what is timed, on which rows, and what is taken where memory ends."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import loops
from tests.tasks import test_classification
from trainer import compose, micro_batch
from trainer.choices import ConfigError
from trainer.data.corpus import open_corpus
from trainer.run import RunDir, load_frozen


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return loops.write_texts(tmp_path_factory.mktemp("texts"), files=8)


@contextmanager
def room(bytes_more: int) -> Iterator[None]:
    """So much more memory may be taken, and no more."""
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + bytes_more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))


def test_a_state_that_does_not_fit_on_one_device_is_no_failure_of_the_trial(tmp_path: Path, texts: Path) -> None:
    import trainer.trainer  # noqa: F401 (libraries take room too)

    # 0.8 GB for one of its matrices alone, of which nothing is allocated here.
    path = loops.ready(tmp_path, texts, sizes=("model.layers=1", "model.hidden=8192", "model.heads=2"))
    told: list[int] = []
    with room(1 << 28):
        assert micro_batch.trial(path, 8, 1, told.append) == {"micro_batch": 0}
    assert told == []


def test_what_is_taken_of_nothing_depends_on_whether_the_strategy_cuts_the_state(capsys: pytest.CaptureFixture[str]) -> None:
    for strategy in ("zero1", "fsdp"):
        config = compose("steps=1", f"strategy={strategy}")
        assert micro_batch._of_none(config) == 1
        assert f"strategy={strategy} cuts the state, so that a larger one may fit" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="not even one row fits on the device"):
        micro_batch._of_none(compose("steps=1", "strategy=ddp"))


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"), micro_batch.while_there_is_memory():
        raise RuntimeError("shapes differ")


def test_a_micro_batch_is_timed_without_the_step_and_beside_its_gradients(tmp_path: Path, texts: Path) -> None:
    here = loops.training(loops.single(), loops.ready(tmp_path, texts))
    placement, step = here.placement, here.loader.step(0)
    seen = []

    def backward() -> None:
        seen.append((int(placement.updates), all(parameter.grad is not None for _, parameter in placement.trained)))
        placement.accumulate(placement.module(step.micro_batches[0])["clm"], last=True)

    assert micro_batch.seconds_of(placement, backward, 1.0, torch.device("cpu")) > 0
    assert seen == [(0, False), (1, False), (1, True), (1, True), (1, True)]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 40), st.integers(1, 7))
def test_the_longest_rows_are_found_in_parts_of_a_table(lengths: list[int], count: int, at_once: int) -> None:
    class Table(SimpleNamespace):
        def __len__(self) -> int:
            return len(self.lengths)

    rows = micro_batch.longest(Table(lengths=np.array(lengths, np.int32)), count, at_once)  # type: ignore[arg-type]
    there = min(count, len(lengths))
    assert len(rows) == count and len(set(rows[:there])) == there
    assert [lengths[row] for row in rows[:there]] == sorted(lengths, reverse=True)[:there]


def test_what_is_tried_of_fine_tuning_is_its_longest_examples(tmp_path: Path) -> None:
    examples = sorted(test_classification.sentences(40), key=lambda example: len(example["text"]))
    path = test_classification.ready(tmp_path, examples, examples[:4])
    config, placement = load_frozen(path / "config.yaml"), RunDir(path).placement
    split = open_corpus(placement["corpus"], placement["rows"], config).split("train")
    step = micro_batch.longest_step(config, split, 3)
    lengths = sorted(np.asarray(split.rows.lengths[:]).tolist())
    assert step.tokens == sum(lengths[-3:]) > sum(lengths[:3]) and step.micro_batches[0].tokens == step.tokens
