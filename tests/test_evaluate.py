"""`trainer evaluate`: any split, set or file of a finished run, alone or by ranks of another strategy: the same figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import loops
from tests.tasks.test_classification import ready, sentences, write
from trainer.choices import ConfigError
from trainer.cli import main
from trainer.run import RunDir
from trainer.verbs.evaluate import held_out
from trainer.verbs.evaluate import run as evaluate


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier with a named set."""
    folder = tmp_path_factory.mktemp("trained")
    examples = sentences(47)
    write(folder / "more.jsonl", examples[40:])
    path = ready(folder, examples[:30], examples[30:40], "steps=3", "evals.more.source=jsonl", f"evals.more.path={folder}/more.jsonl")
    here = loops.training(loops.single(), path)
    here.loop()
    here.finish()
    return path


def kept(path: Path, name: str) -> dict[str, Any]:
    return json.loads((path / "evaluation" / f"{name}.json").read_text())


def test_held_out_training_set_and_file(trained, capsys):
    summary = RunDir(trained).summary
    assert summary is not None
    assert main(["evaluate", f"run={trained}"]) == 0
    told = capsys.readouterr().out
    assert "in summary.json" in told and "macro avg" in told and "confusion" in told and "animal" in told
    anew = kept(trained, "held_out")
    assert anew["figures"]["eval_loss"] == pytest.approx(summary["eval_loss"], rel=1e-5)
    assert sum(map(sum, anew["confusion"]["counts"])) == 10 and "eval_more_loss" not in anew["figures"]
    assert kept(trained, "more")["figures"]["eval_more_loss"] == pytest.approx(summary["eval_more_loss"], rel=1e-5)
    assert main(["evaluate", f"run={trained}", "split=train"]) == 0
    train = kept(trained, "train")
    assert sum(map(sum, train["confusion"]["counts"])) == 30 and set(train["figures"]) >= {"eval_train_loss", "eval_train_accuracy"}
    # The held-out part as a file: the same figures under its name.
    again = trained.parent / "again.jsonl"
    again.write_text((trained.parent / "eval.jsonl").read_text())
    assert main(["evaluate", f"run={trained}", f"input={again}"]) == 0
    assert kept(trained, "again")["figures"]["eval_again_loss"] == pytest.approx(summary["eval_loss"], rel=1e-5)
    assert kept(trained, "again")["confusion"] == anew["confusion"]


def test_c04_ranks_of_another_strategy_find_the_same(trained):
    """Ten examples on three ranks."""
    alone = held_out(RunDir(trained))
    assert evaluate([f"run={trained}", "strategy=fsdp", "processes=3", "device=cpu"]) == 0
    found = kept(trained, "held_out")["figures"] | kept(trained, "more")["figures"]
    assert found == pytest.approx(alone, rel=1e-5, abs=1e-6)
    assert not [*(trained / "evaluation").glob(".ranks*")] and not (trained / "stop").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["split=test"], "split: 'test'; allowed: eval, train"),
        (["set=mor"], "set: 'mor'; this run has held_out, more; did you mean 'more'"),
        (["set=more", "split=train"], "split=train and set"),
        (["input=x.txt"], "input: x.txt: of which kind"),
        (["input=none.jsonl"], "input: 'none.jsonl' not found"),
        (["strategy=fsdpp"], "did you mean"),
        (["strategy=single", "processes=2"], "is 1 process"),
    ],
)
def test_mistakes_are_told(trained, words, told):
    with pytest.raises(ConfigError) as error:
        evaluate([f"run={trained}", *words])
    assert told in str(error.value)


def test_b05_a_label_that_the_model_does_not_know(trained):
    path = write(trained.parent / "odd.jsonl", [{"text": "a rose", "label": "flower"}])
    with pytest.raises(ConfigError, match=r"'flower'.*3 labels"):
        evaluate([f"run={trained}", f"input={path}"])


def test_text_of_a_language_model(tmp_path):
    texts = loops.write_texts(tmp_path)
    path = loops.ready(tmp_path, texts, "steps=1")
    here = loops.training(loops.single(), path)
    here.loop()
    here.finish()
    (tmp_path / "new.md").write_text("alpha beta stone water.\n" * 20)
    assert main(["evaluate", f"run={path}", f"input={tmp_path}/new.md"]) == 0
    assert kept(path, "new")["figures"]["eval_new_perplexity"] > 1
