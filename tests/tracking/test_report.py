"""report.html: self-contained, escaped, complete; of runs that finished, restarted, or have hardly begun."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trainer.tracking import jsonl
from trainer.tracking.charts import smooth
from trainer.tracking.report import write


class _Page(HTMLParser):
    """Tags and text of a page; raises where a reference leads outside it."""

    VOID = ("meta", "br")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset", "action"):
                assert value and value.startswith("#"), f"{tag} {name}={value} leads outside the page"
            if name == "id":
                self.ids.add(str(value))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _parsed(path: Path) -> _Page:
    page = _Page()
    text = path.read_text()
    page.feed(text)
    page.close()
    assert page.open == []
    assert "url(" not in re.sub(r"url\(#\w+\)", "", text) and "@import" not in text and "<script" not in text
    return page


def _run(path: Path, task: str = "clm", finished: bool = True) -> Path:
    path.mkdir()
    metrics, events = jsonl.Lines(path / jsonl.METRICS), jsonl.Lines(path / jsonl.EVENTS)
    clock = 1e9

    def attempt(number: int, first: int, last: int) -> None:
        nonlocal clock
        events.append({"time": clock, "kind": "start", "step": first, "attempt": number, "rank": 0, "world_size": 2, "resumed_at": first})
        for step in range(first + 5, last + 1, 5):
            clock += 1
            terms = {"clm_loss": 5 / step} if task == "clm" else {"mlm_loss": 4 / step, "nsp_loss": 1 / step}
            metrics.append({"step": step, "attempt": number, "time": clock, "loss": 5 / step, **terms,
                            "grad_norm": float("nan") if step == 10 else 1.0,
                            "learning_rate": 1e-3, "tokens_per_second": 1234.5, "mfu": None, "goodput": 0.875, "tokens": step * 100,
                            "interval_steps": 5, "interval_seconds": 1.0})  # fmt: skip
        metrics.append(
            {"step": last, "attempt": number, "time": clock, "eval_loss": 0.5, "eval_bits_per_byte": 1.25, "eval_masked_accuracy": 0.5}
        )

    attempt(0, 0, 60)
    events.append({"time": clock, "kind": "restart", "attempt": 0, "reason": "rank 1 <b>died</b>"})
    attempt(1, 40, 100)
    (path / "config.yaml").write_text(f"name: my run\nsteps: 100\nmodel: {{name: gpt2, layers: 2, hidden: 64}}\ntask: {{name: {task}}}\n")
    (path / "sample.txt").write_text("if a < b && c:\n    <script>alert(1)</script>\n")
    (path / "model").mkdir()
    if finished:
        figures: dict[str, Any] = {
            "steps": 100,
            "loss": 0.05,
            "mfu": None,
            "goodput": 0.875,
            "peak_memory_bytes": 3 * 2**29,
            "strategy": "ddp",
        }
        figures |= (
            {"bits_per_byte": 1.25, "gzip_bits_per_byte": 2.5, "xz_bits_per_byte": 2.0} if task == "clm" else {"masked_accuracy": 0.5}
        )
        (path / "summary.json").write_text(json.dumps(figures))
    return path


@pytest.mark.parametrize("task", ["clm", "mlm_nsp"])
def test_the_page_holds_the_whole_run_and_nothing_from_elsewhere(tmp_path: Path, task: str) -> None:
    path = write(_run(tmp_path / "x", task))
    page = _parsed(path)
    for title in (
        "Loss",
        "Throughput",
        "Gradient norm",
        "Learning rate",
        "Summary",
        "Events",
        "What to try next",
        "my run",
        "87.5%",
        "1.50 GiB",
    ):
        assert title in page.text, title
    assert page.tags.count("svg") >= 6
    if task == "clm":
        assert "gzip -9" in page.text and "2.500 bits/byte" in page.text and "1.250 bits/byte" in page.text
    else:
        assert "Loss by term" in page.text and "Masked tokens found" in page.text and "[MASK]" in page.text
    prompt = "if a < b" if task == "clm" else "The [MASK] is here."
    assert "trainer generate run=" in page.text and f'prompt="{prompt}"' in page.text, "it begins as its data does"
    assert "prefers-color-scheme: dark" in path.read_text()
    assert "var(--first)" in path.read_text() and "#040506" not in path.read_text(), "curves take the page's colours"


def test_what_models_and_errors_wrote_is_text_and_never_markup(tmp_path: Path) -> None:
    path = write(_run(tmp_path / "x"))
    page = _parsed(path)
    assert "<script>alert(1)</script>" in page.text and "rank 1 <b>died</b>" in page.text
    assert "<script>" not in path.read_text()


def test_an_unfinished_run_and_an_empty_one_have_a_page(tmp_path: Path) -> None:
    page = _parsed(write(_run(tmp_path / "x", finished=False)))
    assert "not finished" in page.text and "the same command again" in page.text and "0.050" in page.text
    (tmp_path / "empty").mkdir()
    assert "No figures yet" in _parsed(write(tmp_path / "empty")).text


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    run = _run(tmp_path / "x")
    assert write(run).read_bytes() == write(run).read_bytes()


def test_a_long_run_is_drawn_in_time_and_stays_small(tmp_path: Path) -> None:
    lines = jsonl.Lines(tmp_path / jsonl.METRICS)
    for step in range(1, 20001):
        lines.append({"step": step, "loss": 1 / step, "tokens_per_second": 1.0, "interval_steps": 1, "interval_seconds": 1.0})
    assert write(tmp_path).stat().st_size < 3_000_000


def test_the_running_mean_does_not_lag() -> None:
    line = [float(value) for value in range(100)]
    assert smooth(line) == pytest.approx(line), "a straight line is its own mean"
    assert smooth([1.0, 2.0]) == [1.0, 2.0]


def test_sets_passes_attempts_and_samples_have_their_parts(tmp_path: Path) -> None:
    run = _run(tmp_path / "x")
    lines, events, samples = (jsonl.Lines(run / name) for name in (jsonl.METRICS, jsonl.EVENTS, jsonl.SAMPLES))
    for step, loss in ((50, 3.0), (100, 2.5)):
        lines.append({"step": step, "attempt": 1, "eval_loss": 0.5, "eval_books_loss": loss, "eval_books_perplexity": 9.25})
        lines.append({"step": step, "attempt": 1, "eval_web.en_clm_loss": 7.0, "eval_web.en_loss": 7.125})
        samples.append({"step": step, "attempt": 1, "prompt": "p", "text": f"<i>written at {step}</i>"})
    events.append({"time": 1e9 + 99, "kind": "failure", "attempt": 0, "rank": 1, "reason": "killed by SIGKILL", "step": 57})
    events.append({"time": 1e9 + 99, "kind": "finish", "attempt": 1, "step": 100, "passes_books": 1.37, "passes_web": 0.25})
    (run / "summary.json").write_text(json.dumps({"steps": 100, "passes_books": 1.37, "passes_web": 0.25, "eval_books_loss": 2.5}))
    page = _parsed(write(run))
    text = " ".join(page.text.split())
    assert "Evaluation sets lossperplexity own data0.5000– books2.5009.250 web.en7.125– " in text
    assert "Loss by source and set" in text and "Passes" in text and "books1.37 web0.25" in text
    assert "Attempts 2" in text and "rank 1: killed by SIGKILL" in text
    assert "step 50<i>written at 50</i>" in page.text.replace("\n", "") and "<i>" not in write(run).read_text()
    assert "passes_books" not in text and "eval books loss" not in text, "once is enough"
