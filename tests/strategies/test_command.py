"""A run by the command under zero3: evaluated on the way, and afterwards anybody's model and anybody's checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.loops import GPT, StopAfter, lines, single, write_texts
from trainer.cli import main
from trainer.data.loading import Pick
from trainer.run import RunDir, load_frozen
from trainer.strategies.single import Single
from trainer.trainer import Training

ROOT = Path(__file__).resolve().parents[2]
# A model this small would stay whole beside its parts.
CUT = "strategy.options={zero_optimization: {stage3_param_persistence_threshold: 0}}"


def test_what_zero3_trains_is_read_without_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "texts").mkdir()
    write_texts(tmp_path / "texts")
    words = ("data=text", "data.path=texts/*.txt", "tokenizer.vocab_size=300", "sequence_length=32", "global_batch=5", "micro_batch=2")
    more = ("launcher.processes=2", "steps=5", "eval_every=2", "optim.lr=1e-2", "tracking.wandb=off", "output_dir=run")
    command = [sys.executable, "-m", "trainer", "train", "strategy=zero3", CUT, *GPT, *words, *more]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    path = tmp_path / "run"
    run = RunDir(path)
    assert [line["step"] for line in lines(path, "eval_loss")] == [2, 4, 5]
    (start,) = run.events("start")
    assert start["strategy"] == "zero3" and run.summary["world_size"] == 2
    assert start["files"].startswith("data: 30 files, ") and start["files"].endswith("texts/02.txt and 27 more")

    # Anybody's model.
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path / "model")
    assert model.lm_head.weight is model.transformer.wte.weight

    # Anybody's checkpoint: the same logits, document by document.
    config = load_frozen(run.config_path)
    config.strategy = Single()
    here = Training(config, single(), run, StopAfter())  # type: ignore[arg-type]
    assert here.step == 5
    batch = here.task.collate(here.corpus.split("eval"), [Pick(0, 0)])
    with torch.no_grad():
        wanted = here.placement.task_module.eval().logits(batch, None)[:, : model.config.vocab_size]  # type: ignore[attr-defined]
        found = torch.cat([model(ids).logits[0] for ids in batch.inputs["input_ids"].split(batch.lengths, dim=1)])
    assert len(found) > 8 and found.std() > 0.1
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)

    # And its figures in one process are those that the ranks found.
    capsys.readouterr()
    assert main(["evaluate", f"run={path}"]) == 0
    now, recorded = next(line.split()[-2:] for line in capsys.readouterr().out.splitlines() if line.startswith("eval loss"))
    assert float(now) == pytest.approx(float(recorded), abs=2e-4)
    assert float(recorded) == pytest.approx(lines(path, "eval_loss")[-1]["eval_loss"], abs=1e-3)
