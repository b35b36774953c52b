"""Journey A: a newcomer, a laptop, no network."""

from __future__ import annotations

import json

from tests.journeys.conftest import SMALL


def test_quickstart_says_what_it_does_and_what_came_out(shell, quickstart):
    assert quickstart.code == 0, quickstart.err + quickstart.out
    out = quickstart.out
    assert "documents" in out and "bytes per token" in out  # the closing table of prepare
    assert "tokens/s" in out and "loss" in out
    for what in ("bits per byte", "gzip", "xz", "report.html", "model", "trainer generate run=runs/quickstart"):
        assert what in out, what
    run = shell.folder / "runs" / "quickstart"
    summary = json.loads((run / "summary.json").read_text())
    for key in ("steps", "tokens", "loss", "eval_loss", "bits_per_byte", "gzip_bits_per_byte", "tokens_per_second", "mfu", "goodput",
                "peak_memory_bytes", "world_size", "strategy", "digest"):  # fmt: skip
        assert key in summary, key
    assert summary["steps"] == 12 and summary["world_size"] == 2 and summary["strategy"] == "ddp"
    assert 0 < summary["gzip_bits_per_byte"] < 8 and summary["xz_bits_per_byte"] < summary["gzip_bits_per_byte"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all("step" in line and "attempt" in line for line in lines)
    report = (run / "report.html").read_text()
    assert "<svg" in report or "data:image" in report
    assert "http://" not in report.replace("http://www.w3.org", "") and 'src="https://' not in report


def test_the_model_loads_with_plain_transformers(shell, quickstart):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = shell.folder / "runs" / "quickstart" / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)
    assert model.config.vocab_size == len(tokenizer)
    ids = tokenizer("def main():\n    return 0\n", return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == "def main():\n    return 0\n"
    assert model(ids, labels=ids).loss.isfinite()


def test_generate_writes_on(shell, quickstart):
    done = shell.trainer("generate", "run=runs/quickstart", "prompt=def f(x): return x == 1", "max_tokens=8", "seed=1")
    assert done.code == 0, done.err
    assert "def f(x): return x == 1" in done.out


def test_another_configuration_is_told_how_to_be_named(shell, quickstart):
    done = shell.trainer("train", "experiment=quickstart", *(word for word in SMALL if "layers" not in word), "model.layers=8")
    assert done.code == 1
    assert "model.layers: 1 there, 8 now" in done.err and "name=" in done.err


def test_b01_a_mistyped_key_is_shown_the_right_one(shell):
    done = shell.trainer("train", "experiment=quickstart", "optm.lr=1")
    assert done.code == 1 and "optim.lr" in done.err and "Traceback" not in done.err


def test_the_same_command_again_says_that_it_is_finished(shell, quickstart):
    done = shell.trainer("train", "experiment=quickstart", *SMALL)
    assert done.code == 0 and "is finished" in done.out


def test_evaluate_gives_the_figures_of_the_run(shell, quickstart):
    summary = json.loads((shell.folder / "runs" / "quickstart" / "summary.json").read_text())
    done = shell.trainer("evaluate", "run=runs/quickstart")
    assert done.code == 0, done.err
    assert f"{summary['eval_loss']:.3f}" in done.out


def test_report_can_be_written_again(shell, quickstart):
    path = shell.folder / "runs" / "quickstart" / "report.html"
    path.unlink()
    done = shell.trainer("report", "run=runs/quickstart")
    assert done.code == 0 and path.exists() and str(path.name) in done.out
