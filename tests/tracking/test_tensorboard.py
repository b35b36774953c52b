"""TensorBoard's files, read back by its own reader: the same figures as metrics.jsonl, also over a crash, and the texts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.loops import StopAfter, lines, ready, single, training, write_texts
from trainer.choices import ConfigError
from trainer.distributed import World
from trainer.run import load_frozen
from trainer.tracking import Trackers
from trainer.tracking.tensorboard import FOLDER, TensorBoard


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Six steps, with a crash in the fifth; the checkpoint was that of the third."""
    texts = write_texts(tmp_path_factory.mktemp("texts"), 12)
    words = ("tracking.tensorboard=true", "tracking.samples=2", "eval_every=2", "save_every=3", "tracking.prompts=[alpha,the tree]")
    path = ready(tmp_path_factory.mktemp("runs"), texts, *words)

    def crash(step: int) -> None:
        if step == 6:
            raise RuntimeError("crash")

    here = training(single(), path, StopAfter(before=crash))
    with pytest.raises(RuntimeError, match="crash"):
        here.loop()
    here.trackers.tensorboard._writer.flush()  # the process is not really gone: what its thread would have written in time
    again = training(single(), path)
    assert again.step == 3
    again.loop()
    again.finish()
    return path


def read(folder: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    return found.Reload()


def test_the_scalars_are_those_of_the_log_without_a_seam(run):
    board = read(run / FOLDER)
    for tag, key in (("train/loss", "loss"), ("train/learning_rate", "learning_rate"), ("eval/loss", "eval_loss"),
                     ("eval/bits_per_byte", "eval_bits_per_byte")):  # fmt: skip
        seen = [(event.step, event.value) for event in board.Scalars(tag)]
        # The log keeps both attempts; the last line of a step is the one that counts.
        assert seen == [(line["step"], pytest.approx(line[key], rel=1e-6)) for line in lines(run, key)], tag
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]
    assert len(list((run / FOLDER).iterdir())) == 2, "a file an attempt"


def test_settings_and_samples_are_there(run):
    from tensorboard.plugins.hparams import plugin_data_pb2

    board = read(run / FOLDER)
    data = plugin_data_pb2.HParamsPluginData()
    data.ParseFromString(board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    assert data.session_start_info.hparams["optim.lr"].number_value == 1e-3
    assert data.session_start_info.hparams["task.name"].string_value == "clm"
    kept = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [(line["step"], line["attempt"], line["prompt"]) for line in kept if line["prompt"] == "alpha"] == [
        (2, 0, "alpha"), (4, 0, "alpha"), (4, 0, "alpha"), (6, 0, "alpha")]  # fmt: skip
    last = [line["text"] for line in kept][-2:]
    assert last[0].startswith("alpha") and last[1].startswith("the tree") and len(last[0]) > len("alpha")
    shown = [board.Tensors(f"samples/{number}/text_summary")[-1] for number in (0, 1)]
    assert [event.step for event in shown] == [6, 6]
    for event, text in zip(shown, last, strict=True):
        assert event.tensor_proto.string_val[0].decode() == "\n".join(f"    {line}" for line in text.splitlines())


def test_only_rank_0_writes(run, tmp_path):
    config = load_frozen(run / "config.yaml")
    other = Trackers(config, tmp_path, World(1, 2, 1, 2, torch.device("cpu")), steps=6)
    other.log(1, {"loss": 1.0})
    other.samples(1, [{"prompt": "", "text": "x"}])
    other.finish({"loss": 1.0})
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_told_and_stops_nothing(tmp_path):
    (tmp_path / FOLDER).write_text("a file where the folder would be")
    said: list[str] = []
    board = TensorBoard({"seed": 0}, tmp_path, 0, said.append)
    board.log(1, {"loss": 1.0})
    board.samples(1, [{"prompt": "", "text": "x"}])
    board.finish(True)
    assert len(said) == 1 and said[0].startswith("TensorBoard: stopped")


def test_b09_a_missing_package_is_told_before_anything_is_prepared(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"tracking.tensorboard: true.*shardloom\[tensorboard\]"):
        ready(tmp_path, tmp_path / "no texts", "tracking.tensorboard=true")
