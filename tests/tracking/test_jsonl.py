"""metrics.jsonl after crashes: torn lines, repeated steps, figures that are not finite."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

from trainer.tracking.jsonl import Lines, kept, read


def test_a_torn_line_costs_nothing_but_itself(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    lines = Lines(path)
    lines.append({"step": 3})
    lines.close()
    assert [line["step"] for line in read(path)] == [1, 3]
    assert path.read_text().endswith('{"step": 3}\n')


def test_c18_figures_that_are_not_finite_stay_readable_by_every_json_reader(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "metrics.jsonl")
    lines.append({"step": 1, "loss": math.nan, "inner": {"norm": math.inf}, "list": [1.0, -math.inf]})
    text = (tmp_path / "metrics.jsonl").read_text()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    assert json.loads(text, parse_constant=refuse) == {"step": 1, "loss": None, "inner": {"norm": None}, "list": [1.0, None]}


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    code = (
        "import sys; from pathlib import Path; from trainer.tracking.jsonl import Lines\n"
        "lines = Lines(Path(sys.argv[1]))\n"
        "for number in range(200): lines.append({'who': sys.argv[2], 'number': number, 'text': 'x' * 300})"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(path), str(who)]) for who in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    found = read(path)
    assert len(found) == 600
    for who in range(3):
        assert [line["number"] for line in found if line["who"] == str(who)] == list(range(200))


def test_f01_a_killed_writer_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    code = (
        "import sys; from pathlib import Path; from trainer.tracking.jsonl import Lines\n"
        "lines = Lines(Path(sys.argv[1])); step = 0\n"
        "while True: step += 1; lines.append({'step': step, 'text': 'x' * 500})"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    try:
        until = time.monotonic() + 30
        while (not path.exists() or path.stat().st_size < 20_000) and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        os.kill(writer.pid, 9)
        writer.wait()
    steps = [line["step"] for line in read(path)]
    assert len(steps) > 20 and steps == list(range(1, len(steps) + 1))


def test_steps_that_were_computed_again_are_kept_once() -> None:
    first = [{"step": step, "interval_steps": 10, "attempt": 0} for step in (10, 20, 30)]
    second = [{"step": step, "interval_steps": step - before, "attempt": 1} for before, step in ((15, 20), (20, 40))]
    assert [(line["step"], line["attempt"]) for line in kept(first + second)] == [(10, 0), (20, 1), (40, 1)]
    evaluations = [{"step": 10, "eval_loss": 3.0}, {"step": 20, "eval_loss": 2.0}, {"step": 20, "eval_loss": 1.0}]
    assert [line["eval_loss"] for line in kept(evaluations)] == [3.0, 1.0]
