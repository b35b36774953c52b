"""`trainer runs` on real runs: in every state, asked for by conditions, compared, cleaned."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.loops import StopAfter, ready, single, training, write_texts
from trainer.catalogue.comparison import parting
from trainer.catalogue.conditions import condition
from trainer.catalogue.entries import Entry, entries
from trainer.choices import ConfigError
from trainer.cli import main
from trainer.run import RunDir

FINITE = st.floats(allow_nan=False, allow_infinity=False)


def poisoned(here) -> None:
    inner = here.placement.accumulate
    here.placement.accumulate = lambda loss, last: inner(loss * (float("nan") if here.step == 2 else 1.0), last)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Runs of six tiny steps below one folder."""
    folder = tmp_path_factory.mktemp("made")
    texts = write_texts(tmp_path_factory.mktemp("texts"), 12)
    words = {
        "plain": ("save_every=2", "checkpoint.keep=3"),
        "again": (),
        "grid/job": ("optim.lr=2e-3", "data.workers=1"),
        "stopped": ("save_every=2", "checkpoint.keep=3", "optim.lr=2e-3"),
        "halted": (),
        "new": (),
    }
    for name, extra in words.items():
        path = ready(folder / "runs", texts, *extra, "name=x", name=name)
        if name == "new":
            continue
        here = training(single(), path, StopAfter(5 if name == "stopped" else None))
        if name == "halted":
            poisoned(here)
        here.loop()
        if name not in ("stopped", "halted"):
            here.finish()
    (folder / "runs" / "grid" / "job").rename(folder / "runs" / "grid" / "optim.lr=2e-3")  # as a multirun names it
    # Of a run that W&B mirrors, its folder holds a config.yaml too.
    inner = folder / "runs" / "plain" / "wandb" / "run-1" / "files"
    inner.mkdir(parents=True)
    (inner / "config.yaml").write_text("{}")
    return folder


@pytest.fixture
def shell(made, monkeypatch, capsys):
    """Type a command in the folder of the runs; what it printed."""
    monkeypatch.chdir(made)

    def typed(*words: str, code: int = 0) -> str:
        found = main(["runs", *words])
        out, err = capsys.readouterr()
        assert found == code, err
        return out

    return typed


def lines(out: str) -> dict[str, list[str]]:
    """The table's lines by run, each cut into words."""
    return {words[0]: words for words in (line.split() for line in out.splitlines()[1:]) if words}


def test_the_list_tells_state_figures_and_place(shell, made):
    with RunDir(made / "runs" / "new").locked():
        found = lines(shell("sort=name"))
    assert list(found) == ["again", "grid/optim.lr=2e-3", "halted", "new", "plain", "stopped"]
    assert {name: words[1] for name, words in found.items()} == {
        "again": "finished", "grid/optim.lr=2e-3": "finished", "halted": "halted", "new": "running", "plain": "finished",
        "stopped": "stopped"}  # fmt: skip
    summary = RunDir(made / "runs" / "plain").summary
    assert found["plain"][2:5] == ["6/6", f"{summary['loss']:.3f}", f"{summary['eval_loss']:.3f}"]
    assert found["plain"][-4:-2] == ["single", "1"] and found["plain"][-1] == summary["digest"][:8]
    assert found["stopped"][2] == "5/6"
    stopped = Entry(RunDir(made / "runs" / "stopped"), "stopped")
    assert stopped.fact("loss") > 0 and stopped.fact("eval_loss") is None, "the loss of training is none of the held-out part"
    assert found["again"][-1] == found["plain"][-1] != found["stopped"][-1]
    assert lines(shell("state=new")).keys() == {"new"}


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["state=finished", "optim.lr=0.001"], {"again", "plain"}),
        (["name=*a*n*", "steps>=6"], {"again", "plain"}),
        (["optim.lr>1e-3"], {"grid/optim.lr=2e-3", "stopped"}),
        (["name=grid/optim.lr=2e-3"], {"grid/optim.lr=2e-3"}),
        (["state!=finished", "age<1d"], {"halted", "stopped"}),
        (["bits_per_byte>0"], {"again", "grid/optim.lr=2e-3", "plain"}),
    ],
)
def test_conditions_choose(shell, words, meant):
    out = shell(*words)
    assert lines(out).keys() == meant
    assert all(condition(word).key in out.splitlines()[0].split() for word in words), "what is asked for is shown"


@pytest.mark.parametrize(
    ("word", "told"),
    [("loss", "not a condition"), ("loss<", "not a condition"), ("los<2", "did you mean 'loss'"), ("loss<low", "allowed: a number"),
     ("age<2y", "30m, 12h or 2d"), ("state<3", "only numbers have an order"), ("root=none", "no such folder")],
)  # fmt: skip
def test_b01_a_condition_that_is_none_is_told(made, monkeypatch, capsys, word, told):
    monkeypatch.chdir(made)
    assert main(["runs", word]) == 1
    assert told in capsys.readouterr().err


@given(fact=FINITE, value=FINITE, sign=st.sampled_from(["=", "!=", "<", "<=", ">", ">="]))
def test_numbers_compare_as_numbers(fact, value, sign):
    entry = Entry(RunDir("x"), "x")
    entry.own, entry.figures, entry.config = {}, {"loss": fact}, {}
    wanted = {"=": fact == value, "!=": fact != value, "<": fact < value, "<=": fact <= value, ">": fact > value, ">=": fact >= value}
    assert condition(f"loss{sign}{value!r}").holds(entry) is wanted[sign]


def test_diff_names_the_keys_and_the_step_where_curves_part(shell, made):
    out = shell("diff", "plain", "runs/grid/optim.lr=2e-3")
    computed, _, placed = out.partition("where and how")
    placed = placed.partition("\n\n")[0]
    assert "optim.lr  " in computed and "data.workers  " in placed and "optim.lr  " not in placed
    assert "output_dir" not in out
    # The first step is taken from the same weights; the second sees what the rate has done.
    assert "equal to the last digit up to step 1, first different at step 2" in out
    page = made / "runs" / "diff-plain-optim.lr=2e-3.html"
    assert str(page.relative_to(made)) in out
    assert "optim.lr" in page.read_text() and page.read_text().count("<svg") == 2


def test_diff_of_the_same_computation(shell):
    out = shell("diff", "plain", "again")
    assert "what is computed (identity): no difference" in out
    assert "equal to the last digit in the 6 steps that both logged" in out


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({1: 2.0, 2: 1.0 + 1e-7}, "up to step 1, first different at step 2: loss 1 and 1; never more than 1e-05 apart"),
        ({1: 2.0 + 1e-6, 2: 1.5}, "first different at step 1: loss 2 and 2.000001; more than 1e-05 apart (relative) from step 2 on"),
        ({2: None}, "first different at step 2: loss 1 and not finite"),
        ({7: 1.0}, "no step was logged by both"),
    ],
)
def test_noise_is_told_from_difference(second, told):
    assert told in parting({1: 2.0, 2: 1.0}, second)


def test_clean_removes_what_can_go_and_nothing_else(shell, made, tmp_path, monkeypatch):
    shutil.copytree(made / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs"
    steps = {name: sorted(path.name for path in (runs / name / "checkpoints").iterdir()) for name in ("plain", "stopped")}
    assert len(steps["plain"]) == 3 and len(steps["stopped"]) == 3
    partial = runs / "stopped" / "checkpoints" / ".step-0000099.partial"
    partial.mkdir()
    (partial / "rank-00000.safetensors").write_bytes(b"x" * 5000)
    torn, fresh = runs / "halted" / ".model.123", runs / "halted" / ".report.html.456"
    for path in (torn, fresh):
        path.write_text("half")
    os.utime(torn, (0, 0))
    # A run that starts from the oldest checkpoint of `plain`, and has not saved yet.
    tree = (runs / "new" / "config.yaml").read_text().replace("run: null", f"run: {runs / 'plain'}@2")
    (runs / "new" / "config.yaml").write_text(tree)

    out = shell("clean")
    assert "4.88 KiB" in out and "checkpoints/step-0000004" in out and "yes=true" in out
    assert partial.exists() and torn.exists(), "nothing goes unasked"
    with RunDir(runs / "stopped").locked():
        assert ".partial" not in shell("clean", "yes=true"), "never of a running one"
    assert sorted(path.name for path in (runs / "plain" / "checkpoints").iterdir()) == ["step-0000002", "step-0000006"]
    assert not torn.exists() and fresh.exists() and partial.exists()
    shell("clean", "yes=true", "keep=0", "name=stopped")
    assert sorted(path.name for path in (runs / "stopped" / "checkpoints").iterdir()) == steps["stopped"], "still to go on from"
    shell("clean", "yes=true", "keep=0", "name=plain")
    assert [path.name for path in (runs / "plain" / "checkpoints").iterdir()] == ["step-0000002"]
    assert (runs / "plain" / "model" / "config.json").exists()
    here = training(single(), runs / "stopped")
    assert here.step == 5


def test_checkpoints_are_listed_with_what_they_are_kept_for(shell, made, tmp_path, monkeypatch):
    shutil.copytree(made / "runs" / "plain", tmp_path / "runs" / "plain")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "plain"
    # As of a run that was told to keep more.
    text = (run / "config.yaml").read_text()
    told = {"keep: 3": "keep: 1", "keep_every: null": "keep_every: 4", "best: null": "best: eval_loss"}
    for old, new in told.items():
        assert old in text
        text = text.replace(old, new)
    (run / "config.yaml").write_text(text)
    out = shell("checkpoints", "run=plain").splitlines()
    assert out[0].split() == ["step", "age", "size", "strategy", "world", "loss", "state", "kept", "for"]
    assert out[1].split()[4:6] == ["single", "1"] and "whole" in out[1] and "nothing: it goes with the next save" in out[1]
    assert "every 4 steps" in out[2] and "newest" in out[3]
    assert shell("checkpoints", "run=plain", "verify=true").count(" good ") == 3

    shard = run / "checkpoints" / "step-0000004" / "rank-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    os.truncate(run / "checkpoints" / "step-0000006" / "rank-00000.safetensors", 40)
    (run / "checkpoints" / "step-0000009").mkdir()
    out = shell("checkpoints", "run=plain", "verify=true", code=1)
    assert "does not have the checksum that it was written with, at byte 0" in out and "has 40 bytes" in out
    assert "partial" in out and "no COMMIT" in out and "2 of 4 damaged" in out


def test_a_log_longer_than_its_tail_still_gives_the_newest_evaluation(tmp_path):
    (tmp_path / "config.yaml").write_text("name: x\n")
    with (tmp_path / "metrics.jsonl").open("w") as file:
        file.write(json.dumps({"step": 10, "eval_loss": 3.5}) + "\n")
        for step in range(11, 4000):
            file.write(json.dumps({"step": step, "loss": 1.0, "interval_steps": 1, "padding": "x" * 60}) + "\n")
    (entry,) = entries(tmp_path)
    assert entry.fact("eval_loss") == 3.5 and entry.fact("steps") == 3999 and entry.state == "new"


def test_b13_a_run_that_is_not_there_is_told_the_nearest(made, monkeypatch, capsys):
    monkeypatch.chdir(made)
    assert main(["runs", "diff", "plain", "agian"]) == 1
    assert "did you mean 'again'" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="two runs are needed, 1 given"):
        from trainer.verbs.runs import run

        run(["diff", "plain"])
