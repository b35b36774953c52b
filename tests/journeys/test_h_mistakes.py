"""Journey H: mistakes, typed as a person would. A clear error, no traceback, nothing started, nothing lost."""

from __future__ import annotations

import gzip
import json
import shutil

import pytest

from tests.journeys.conftest import SMALL


def told(shell, *words: str) -> str:
    """What a refused command says; it must be refused before anything is launched."""
    done = shell.trainer("train", *words)
    assert done.code == 1, done.out + done.err
    assert "Traceback" not in done.err + done.out and done.err.startswith("error: ")
    assert "training " not in done.out
    return done.err


@pytest.fixture(scope="module")
def folder(shell):
    """Files that are wrong in one way each."""
    root = shell.folder / "files"
    root.mkdir()
    (root / "empty.txt").write_text("")
    (root / "bad.txt").write_bytes(b"first line\nsecond \xff line\n")
    (root / "good.txt").write_text("one line of text\nand another one\n" * 300)
    (root / "broken.txt.gz").write_bytes(gzip.compress(b"some text\n" * 1000)[:-20])
    (root / "model.bin").write_bytes(b"\x80\x04\x95pickle")
    (root / "blank.txt").write_text(" \n\n" * 50)
    (root / "hollow.jsonl").write_text('{"text": null}\n{"text": " "}\n' * 20)
    (root / "bad.jsonl").write_text('{"text": "fine"}\n{"text": "never closed}\n{"text": "fine"}\n')
    (root / "poems.json").write_text(json.dumps([{"title": "t", "lines": ["a line", "another"]}] * 40))
    (root / "mail.csv").write_text("subject,body\nhello,a letter\n" * 20)
    records = "".join(f'{{"text": "record {number} of a few words"}}\n' for number in range(60))
    (root / "some-bad.jsonl").write_text(records + '{"text": 3}\n{"text": "never closed\n')
    return root


@pytest.mark.parametrize(
    ("row", "words", "parts"),
    [
        ("b01", ["experiment=quickstart", "optm.lr=1e-3"], ["optm.lr", "'optim.lr'"]),
        ("b01", ["experiment=quickstrat"], ["quickstrat", "'quickstart'"]),
        ("b03", ["experiment=quickstart", "sequence_length=2048"], ["2048", "model.positions"]),
        ("b06", ["data=text", "data.path=files/empty.txt", "steps=1"], ["files/empty.txt", "empty"]),
        ("b07", ["data=text", "data.path=files/bad.txt", "steps=1"], ["files/bad.txt:2:", "on_error=skip"]),
        ("b07", ["data=text", "data.path=files/broken.txt.gz", "steps=1"], ["broken.txt.gz"]),
        ("b06", ["data=text", "data.path=files/blank.txt", "steps=1"], ["files/blank.txt", "1 files read, 0 kept", "1 empty files"]),
        ("b06", ["data=jsonl", "data.path=files/hollow.jsonl", "steps=1"], ["files/hollow.jsonl", "0 kept", "40 records without text"]),
        ("b07", ["data=jsonl", "data.path=files/bad.jsonl", "steps=1"], ["files/bad.jsonl:2:10: broken JSON", "on_error=skip"]),
        ("b13", ["data=text", "data.path=files/nowhere/*.txt", "steps=1"], ["files/nowhere/*.txt"]),
        ("b13", ["data=text", "data.path=files/god.txt", "steps=1"], ["files/god.txt", "did you mean 'good.txt'?"]),
        ("b13", ["data=hub", "data.path=nobody/nothing", "steps=1"], ["'nobody/nothing'", "huggingface.co", "hf download --repo-type"]),
        ("b14", ["data=jsonl", "data.path=files/poems.json", "steps=1"], ["columns with text are title, lines", "data.columns.text="]),
        ("b14", ["data=jsonl", "data.path=files/poems.json", "data.columns.text=line", "steps=1"], ["'line'", "did you mean 'lines'?"]),
        ("b14", ["data=csv", "data.path=files/mail.csv", "data.columns.text=text", "steps=1"], ["'text'", "subject, body"]),
        ("b13", ["data=text", "data.path=files/good.txt", "tokenizer=pretrained", "tokenizer.path=./none", "steps=1"], ["./none"]),
        ("s09", ["data=text", "data.path=files/model.bin", "steps=1"], ["model.bin"]),
        ("b09", ["experiment=quickstart", "name=gpus", "device=cuda"], ["device=cuda", "visible"]),
        ("b16", ["experiment=quickstart", "name=both", "strategy=zero2", "optim=muon"], ["strategy=zero2", "optim=muon", "strategy=ddp"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_are_told_before_anything_runs(shell, folder, row, words, parts):
    text = told(shell, *words)
    for part in parts:
        assert part in text, text


def test_b02_a_batch_that_does_not_divide_is_a_warning_and_trains(library):
    out = " ".join(library.out.split())
    assert library.code == 0 and "warning:" in out and "global_batch=7" in out and "Sizes that divide" in out


def test_b07_what_is_skipped_is_counted(shell, folder):
    words = ["data=jsonl", "data.path=files/some-bad.jsonl", "data.on_error=skip", "tokenizer.vocab_size=300", "sequence_length=16"]
    done = shell.trainer("prepare", *words, "steps=1")
    assert done.code == 0, done.err
    assert "1 lines that are not JSON" in done.out and "1 records whose text is of another type" in done.out


def test_b08_a_foreign_checkpoint_is_named_and_the_good_one_used(shell, quickstart):
    """A damaged newest checkpoint: the one before is used, and the run finishes."""
    run = shell.folder / "runs" / "damaged"
    shutil.copytree(shell.folder / "runs" / "quickstart", run)
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    shard = next(newest.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-8])
    (run / "summary.json").unlink()
    again = shell.trainer("train", "experiment=quickstart", *SMALL, "name=damaged")
    assert again.code == 0, again.err
    assert newest.name in again.out and shard.name in again.out
    resumed = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines() if '"start"' in line][-1]
    assert resumed["resumed_at"] == 10


def test_b13_a_model_not_found_tells_where_it_was_looked_for(shell, folder):
    done = shell.trainer("train", "data=text", "data.path=files/good.txt", "model=pretrained", "model.path=./no-such-model", "steps=1",
                         "sequence_length=16", "tokenizer.vocab_size=300")  # fmt: skip
    assert done.code != 0 and "no-such-model" in done.err + done.out and "Traceback" not in done.err


def test_b15_another_configuration_names_keys_and_choices(shell, quickstart):
    text = told(shell, "experiment=quickstart", *SMALL, "optim.lr=0.5", "seed=3")
    assert "optim.lr:" in text and "seed: 0 there, 3 now" in text
    assert "name=" in text and "resume.overwrite=true" in text


def test_a_run_that_is_not_there(shell, quickstart):
    done = shell.trainer("generate", "run=runs/quikstart", "prompt=x")
    assert done.code == 1 and "runs/quickstart" in done.err
