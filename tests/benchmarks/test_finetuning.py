"""The scripts about fine-tuning: what is held out is seen by no pretraining, and both loops compute the same on ragged examples."""

from __future__ import annotations

import json

import pytest

from benchmarks import examples
from benchmarks.finetuning import Interval
from benchmarks.peers import finetune_parity


@pytest.mark.parametrize(
    ("read", "text_of"),
    [
        (examples.entities, lambda one: " ".join(one["tokens"])),
        (examples.parts_of_speech, lambda one: one["text"]),
        (examples.genres, lambda one: one["text"]),
        (examples.poems, lambda one: one["text"]),
        (examples.questions, lambda one: one["paragraphs"][0]["context"]),
        (examples.meanings, lambda one: one["target"][-1]),
    ],
)
def test_what_is_held_out_is_in_no_pretraining(read, text_of, data_folder, tmp_path):
    found = read(data_folder)
    trained = set(found.texts)
    held_out = [text_of(one) for one in found.held_out]
    # Short ones, such as "Thanks!", are said by many.
    shared = [text for text in held_out if text in trained and len(text) > 60]
    assert held_out and len(shared) <= 0.01 * len(held_out), shared[:3]
    assert found.texts and all(0 <= share < 1 for share in found.baselines.values())
    form, train, held_out_file = found.write(tmp_path)
    assert form == f"data={found.form}" and train.startswith("data.train=") and held_out_file.startswith("data.eval=")


def test_a_file_that_says_train_is_trained_on_and_its_neighbour_is_held_out(tmp_path):
    for name in ("a.train.json", "b.json"):
        (tmp_path / name).write_text(json.dumps([name]))
    sides = examples.parted(examples.files(tmp_path, "*.json"), lambda path: [(path.name, {"from": path.name})])
    assert sides == ([{"from": "a.train.json"}], [{"from": "b.json"}])
    with pytest.raises(FileNotFoundError, match=r"\*\.csv"):
        examples.files(tmp_path, "*.csv")


def test_the_interval_is_students():
    found = Interval.of([0.1, 0.2, 0.3])
    assert (found.mean, found.half) == pytest.approx((0.2, 4.3027 * 0.1 / 3**0.5), rel=1e-4)
    assert Interval.of([0.5]).low == float("-inf")


def test_the_same_fine_tuning_by_trainer(data_folder):
    name = next(iter(finetune_parity.TASKS))
    pair = finetune_parity.compared(name, data_folder, steps=4, seed=1)
    assert len(pair.ours) == 4 and pair.apart < 1e-5 and pair.our_score == pytest.approx(pair.their_score, abs=0.01)
