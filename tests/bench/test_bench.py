"""`trainer bench` as it is typed: interrupted, gone on with, refused in part; what it writes, and what the page shows."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.loops import GPT, write_texts
from tests.tracking.test_report import _parsed
from tests.tracking.test_weights_biases import _history
from trainer.choices import ConfigError
from trainer.verbs import bench

ROOT = Path(__file__).parents[2]
RUN = ("data=text", "data.path=texts/*.txt", "tokenizer.vocab_size=300", "sequence_length=32", "global_batch=8", "micro_batch=4", *GPT)
WORDS = (*RUN, "strategy=single,ddp,fsdp", "optim=muon", "steps=4", "warmup=2", "repeats=2", "name=tiny", "tracking.wandb=offline")


def typed(folder: Path, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trainer", "bench", *words]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def repeats(path: Path) -> list[list[dict[str, Any]]]:
    return [cell["repeats"] for cell in json.loads(path.read_text())["cells"]] if path.exists() else []


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A bench that got Ctrl-C after its first repeat."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "texts").mkdir()
    write_texts(folder / "texts")
    path = folder / "runs" / "bench-tiny" / "results.json"
    process = typed(folder, *WORDS)
    while not any(repeats(path)) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=300)[0]
    return {"folder": folder, "told": told, "code": process.returncode, "repeats": repeats(path)}


@pytest.fixture(scope="module")
def done(interrupted: dict[str, Any]) -> dict[str, Any]:
    """The same command again."""
    process = typed(interrupted["folder"], *WORDS)
    told = process.communicate(timeout=500)[0]
    return {
        "folder": interrupted["folder"] / "runs" / "bench-tiny",
        "told": told,
        "code": process.returncode,
        "before": interrupted["repeats"],
    }


# Apart from the next, so that a slow machine has time for both.
def test_ctrl_c_keeps_what_was_measured(interrupted: dict[str, Any]) -> None:
    assert interrupted["code"] == 130, interrupted["told"]
    assert "interrupted; the same command measures what is missing" in interrupted["told"]
    assert 1 <= sum(map(len, interrupted["repeats"])) < 4


def test_the_same_command_goes_on(done: dict[str, Any]) -> None:
    now = repeats(done["folder"] / "results.json")
    assert [len(each) for each in now] == [2, 2, 0], done["told"]
    assert all(before == after[: len(before)] for before, after in zip(done["before"], now, strict=True))


def test_a_cell_that_is_refused_is_shown_with_its_reason_and_the_others_are_measured(done: dict[str, Any]) -> None:
    assert done["code"] == 1, done["told"]
    single, ddp, fsdp = json.loads((done["folder"] / "results.json").read_text())["cells"]
    assert (single["state"], ddp["state"], fsdp["state"]) == ("measured", "measured", "refused")
    assert "Muon orthogonalizes whole matrices" in fsdp["reason"] and fsdp["reason"] in done["told"]
    assert (single["processes"], ddp["processes"]) == (1, 2)


def test_figures_are_those_of_the_measured_steps(done: dict[str, Any]) -> None:
    single, ddp, _ = repeats(done["folder"] / "results.json")
    for repeat in (*single, *ddp):
        assert len(repeat["step_seconds"]) == 4 and sum(repeat["step_seconds"]) == pytest.approx(repeat["seconds"], rel=0.5)
        assert repeat["samples"] == 4 * 8 and 0 < repeat["tokens"] <= 4 * 8 * 32
        assert repeat["tokens_per_second"] == pytest.approx(repeat["tokens"] / repeat["seconds"])
        assert 0 <= repeat["data_wait"] < 1 and repeat["memory_bytes"] > 1 << 27 and repeat["clock"] == "host"
        assert repeat["flops_per_second"] > 0 and repeat["mfu"] is None and repeat["start_seconds"] > 0
    # The same rows in the same order, whatever places them.
    assert len({repeat["tokens"] for repeat in (*single, *ddp)}) == 1
    assert single[0]["host_syncs_per_step"] == 0 and "communication_in_flight" not in single[0]
    assert 0 < ddp[0]["communication_in_flight"] <= 1 and 0 <= ddp[0]["communication_exposed"] <= ddp[0]["communication_in_flight"]
    assert "host_syncs_per_step" not in single[1], "what costs time is looked at once"
    assert not list(done["folder"].glob("cells/*/checkpoints/step-*")) and not list(done["folder"].glob("cells/*/summary.json"))


def test_table_document_page_and_picture(done: dict[str, Any]) -> None:
    folder = done["folder"]
    assert "tokens/s" in done["told"] and "median of 2 repeats" in done["told"]
    document = (folder / "bench.md").read_text()
    assert document.startswith("# bench-tiny\n") and re.search(r"\| ddp \|.*\(.* – .*\)", document) and "fsdp: refused" in document
    page = _parsed(folder / "bench.html")
    assert all(word in page.text for word in ("bench-tiny", "single", "ddp", "Muon orthogonalizes", "torch"))
    assert page.tags.count("svg") == 1 and (folder / "throughput.png").read_bytes().startswith(b"\x89PNG")


def test_medians_are_mirrored_at_weights_and_biases(done: dict[str, Any]) -> None:
    if "gave up waiting" in done["told"]:
        pytest.skip("W&B's own process did not start in a minute")
    files = sorted(done["folder"].glob("wandb/offline-run-*/*.wandb"))
    lines = [line for file in files for line in _history(file)]
    assert [line["step"] for line in lines] == [1, 2] and all(line["train/tokens_per_second"] > 0 for line in lines), done["told"]


def test_a_folder_holds_one_bench(done: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(done["folder"].parents[1])
    with pytest.raises(ConfigError, match=r"holds another bench: trainer bench .* name this one"):
        bench.run([word for word in WORDS if not word.startswith("warmup")])


@pytest.mark.parametrize(
    ("words", "told"),
    [(["repeats=0"], "repeats: 0; at least 1"), (["processes=two"], "processes: two"), (["scaling=up"], "allowed: strong, weak")],
)
def test_options_that_mean_nothing(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        bench.run(words)
