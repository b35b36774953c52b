"""C04, C05, C12, C19 of every task on examples: the same losses and figures at 1, 2 and 3 processes, each example scored once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import loops
from tests.distributed import run_distributed
from tests.tasks import test_contrastive
from tests.tasks.test_classification import sentences, write
from tests.tasks.test_question_answering import questions
from tests.tasks.test_writing import dialogues, pairs
from trainer.choices import groups, load_choices
from trainer.distributed import World

BERT = ("model=bert_tiny", "model.layers=1", "model.hidden=32", "model.heads=2", "tokenizer.vocab_size=300")
GPT = ("model=gpt2_tiny", "model.layers=1", "model.hidden=32", "model.heads=2", "tokenizer.vocab_size=300")
# Held-out examples: one process of three has another number of them than the others.
TRAIN, HELD_OUT = 20, 7


def tagged(count: int) -> list[dict[str, Any]]:
    found = []
    for example in sentences(count):
        words = example["text"].split()
        found.append(
            {"tokens": words, "tags": [f"B-{example['label']}" if place == len(words) - 2 else "O" for place in range(len(words))]}
        )
    return found


def related(count: int) -> list[dict[str, Any]]:
    found = []
    for example in sentences(count):
        words = example["text"].split()
        spans = {"subj_start": 0, "subj_end": 0, "obj_start": len(words) - 2, "obj_end": len(words) - 2}
        found.append({"tokens": words, **spans, "relation": example["label"]})
    return found


TASKS: dict[str, tuple[list[dict[str, Any]], tuple[str, ...]]] = {
    "classification": (sentences(TRAIN + HELD_OUT), BERT),
    "token_classification": (tagged(TRAIN + HELD_OUT), BERT),
    # In windows, those of one question on several ranks; some have no answer.
    "question_answering": (questions(TRAIN + HELD_OUT), (*BERT, "sequence_length=24")),
    "relation": (related(TRAIN + HELD_OUT), GPT),
    # Its negatives are those of the whole global batch, so a process takes its share at once.
    "contrastive": (test_contrastive.pairs(TRAIN + HELD_OUT, negatives=True), (*BERT, "micro_batch=auto")),
    "seq2seq": (pairs(TRAIN + HELD_OUT), (*GPT, "task.max_target_length=8")),
    "instruct": (dialogues(TRAIN + HELD_OUT), (*GPT, "task.max_target_length=8", "task.generate=true")),
}


def ready(folder: Path, task: str, world: int) -> Path:
    examples, words = TASKS[task]
    here = folder / task
    here.mkdir(exist_ok=True)
    files = write(here / "train.jsonl", examples[:TRAIN]), write(here / "eval.jsonl", examples[TRAIN:])
    length = () if any(word.startswith("sequence_length=") for word in words) else ("sequence_length=96",)
    data = (f"task={task}", "data=jsonl", f"data.train={files[0]}", f"data.eval={files[1]}", *length)
    # Of 7 rows a step: ranks have other numbers of them, and the last has one step less.
    rows = () if "micro_batch=auto" in words else ("micro_batch=3",)
    given = (*data, *words, *rows, "steps=3", "global_batch=7", "eval_every=1")
    return loops.ready(here, here, *given, name=f"at-{world}", world=world, sizes=())


def trained(world: World, paths: list[str]) -> list[dict[str, Any]]:
    """The losses and figures of each run, evaluated at every step, and how many examples were scored."""
    found = []
    for path in paths:
        here = loops.training(world, path)
        rows = [row for batch in _batches(here.held_outs[0].loaders[""]) for row in batch.rows]
        here.loop()
        assert here.placement.module.training, "C19: the mode is restored"
        found.append({"figures": here.evaluated, "rows": rows})
    return found


def _batches(loader: Any) -> list[Any]:
    return [batch for step in loader.steps() for batch in step.micro_batches]


def test_all_tasks_on_examples_are_here():
    load_choices()
    named = {name for name, task in groups()["task"].items() if task.fields and task.__module__.startswith("trainer.")}
    assert named == set(TASKS)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Of one process: the folder, results and losses by task."""
    folder = tmp_path_factory.mktemp("tasks")
    paths = {task: ready(folder, task, 1) for task in TASKS}
    found = dict(zip(TASKS, trained(loops.single(), list(map(str, paths.values()))), strict=True))
    return folder, found, {task: loops.losses(path) for task, path in paths.items()}


@pytest.mark.parametrize("world", [2, 3])
def test_c04_c05_c12_c19_the_same_curve_and_figures_on_any_number_of_processes(alone, world):
    folder, results, losses = alone
    paths = {task: ready(folder, task, world) for task in TASKS}
    by_rank = run_distributed(trained, world, list(map(str, paths.values())))
    for place, task in enumerate(TASKS):
        ranks = [found[place] for found in by_rank]
        scored = sorted(row for rank in ranks for row in rank["rows"])
        assert scored == sorted(results[task]["rows"]) and len(scored) == len(set(scored)) >= HELD_OUT, f"{task}: each row once"
        assert len(scored) > HELD_OUT or task != "question_answering", "windows"
        assert loops.losses(paths[task]) == pytest.approx(losses[task], rel=1e-4), task
        for rank in ranks:
            assert rank["figures"] == pytest.approx(results[task]["figures"], rel=1e-3, abs=1e-4), task
            assert all(np.isfinite(value) for value in rank["figures"].values())
