"""Several prepares on one folder: each part made once, a dead one followed, and always the bytes that one alone would make."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.data.corpora import Settings, files_of
from trainer.data import fingerprints, parts, pipeline
from trainer.data.claims import JOURNAL, Work, made_once
from trainer.data.corpus import Corpus
from trainer.data.prepare import prepare
from trainer.data.record_sources import Jsonl

ROOT = Path(__file__).resolve().parents[2]

# Small parts and units. Where it is told so, it stops amid the work and says so, and goes on when its input ends: never, it is killed.
PROGRAM = """
import sys
from tests.data.corpora import Settings
from trainer.data import parts, pipeline, shards
from trainer.data.prepare import prepare
from trainer.data.record_sources import Jsonl

def stopping(method):
    calls = []
    def stop(*given):
        result = method(*given)
        calls.append(given)
        if len(calls) == 3:
            print("stopped", flush=True)
            sys.stdin.read()
        return result
    return stop

path, part_bytes, *stops = sys.argv[1:]
parts.PART_BYTES, pipeline.UNIT_BYTES, pipeline._COMMIT_SECONDS = int(part_bytes), 1 << 13, 0.0
for name in stops:
    setattr(shards.CorpusWriter, name, stopping(getattr(shards.CorpusWriter, name)))
prepare(Settings(Jsonl(path=path, processes=1, deduplicate=True)))
"""
PART = 1 << 15


class Prepare:
    """A real process that prepares. stops: where it halts."""

    def __init__(self, folder: Path, cache: Path, *stops: str, part: int = PART):
        environment = os.environ | {"TRAINER_CACHE": str(cache), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        words = [sys.executable, "-c", PROGRAM, str(folder), str(part), *stops]
        self.process = subprocess.Popen(
            words, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []

    def until(self, beginning: str) -> str:
        """The next line that begins so."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith(beginning):
                return line
        raise AssertionError(f"it ended without {beginning!r}: {self.lines} {self.process.communicate()[1]}")

    def kill(self) -> None:
        """With SIGKILL. Its tokenizing processes, which write to the same pipe, must end by themselves."""
        self.process.kill()
        self.process.communicate(timeout=60)

    def end(self) -> list[str]:
        """All lines of one that succeeds."""
        out, err = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, err
        return self.lines + out.splitlines()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small files, and one that is cut into parts; some documents stand in several of them."""
    folder = tmp_path_factory.mktemp("texts")
    for name, numbers in (("a", range(400)), ("b", range(300, 500)), ("c", range(3000)), ("d", range(2900, 3100))):
        records = [{"text": f"record {number * 7919 % 3001} of " + "several words " * (number % 9)} for number in numbers]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return folder


def made(cache: Path) -> dict[str, bytes]:
    """What a prepare made to last."""
    return {name: data for name, data in files_of(cache).items() if not name.startswith("fingerprints")}


def here(folder: Path, cache: Path, part_bytes: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Prepare in this process; returns its lines."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINER_CACHE", str(cache))
        patch.setattr(parts, "PART_BYTES", part_bytes)
        patch.setattr(pipeline, "UNIT_BYTES", 1 << 13)
        config: Any = Settings(Jsonl(path=str(folder), processes=1, deduplicate=True))
        prepare(config)
    return capsys.readouterr().out.splitlines()


def taken(lines: list[str], what: str) -> list[int]:
    return [int(match[1]) for line in lines if (match := re.match(rf"{what} part (\d+) of", line))]


@pytest.fixture(scope="module")
def together(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """What three processes make that start at once, and their lines."""
    cache = tmp_path_factory.mktemp("together")
    three = [Prepare(texts, cache) for _ in range(3)]
    return cache, [line for each in three for line in each.end()]


def test_three_at_once_make_each_part_once_and_the_bytes_of_one(texts, together, tmp_path, capsys):
    alone = here(texts, tmp_path, PART, capsys)
    number = len(taken(alone, "tokenizing"))
    assert number > 4 and any("from byte" in line for line in alone)
    for what in ("tokenizing", "looking for repeated documents"):
        assert sorted(taken(together[1], what)) == list(range(1, number + 1)) == taken(alone, what), what
    assert made(together[0]) == made(tmp_path)


def test_where_parts_end_does_not_matter(texts, together, tmp_path, capsys):
    """The same text in one part: the same tokens, though its key is another."""
    assert taken(here(texts, tmp_path, 1 << 30, capsys), "tokenizing") == []
    found = [next((cache / "corpus").glob("*/meta.json")).parent for cache in (together[0], tmp_path)]
    streams = [[(path / split / "tokens-00000.bin").read_bytes() for split in ("train", "eval")] for path in found]
    assert streams[0] == streams[1]
    records = [line for path in texts.iterdir() for line in path.read_text().splitlines()]
    repeated = len(records) - len(set(records))
    assert [Corpus(path).meta["dropped"] for path in found] == 2 * [{"documents that repeat another": repeated}]


def test_one_killed_in_a_part_and_one_killed_while_joining_them_are_followed(texts, together, tmp_path):
    first = Prepare(texts, tmp_path, "commit")
    first.until("stopped")
    second = Prepare(texts, tmp_path, "add")
    assert f"process {first.process.pid} " in second.until("waiting for 1 of")
    first.kill()
    second.until("going on after 3 units")
    second.until("stopped")
    third = Prepare(texts, tmp_path)
    assert f"process {second.process.pid} " in third.until("waiting for process")
    second.kill()
    third.end()
    assert taken(third.lines, "tokenizing") == [], "joining needs nothing of what was done before"
    assert made(tmp_path) == made(together[0])


def test_of_many_that_try_one_gets_each_target(tmp_path):
    targets = [tmp_path / f"part-{number}" for number in range(40)]
    got: list[str] = []

    def make() -> None:
        work = Work(targets)
        while work.left():
            while claim := work.take():
                (claim.emptied() / "file").write_text("made")
                claim.finish()
                got.append(claim.target.name)

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(target.name for target in targets)
    assert {path.name for path in tmp_path.iterdir()} == set(got), "nothing is left beside them"


def test_files_are_read_once_by_all_who_look_at_them(tmp_path, monkeypatch):
    paths = [tmp_path / f"{number}.txt" for number in range(30)]
    for number, path in enumerate(paths):
        path.write_text(f"text {number}")
        os.utime(path, (1, number))
    monkeypatch.setattr(fingerprints, "_GROUP_BYTES", 20)
    read: list[str] = []
    really = fingerprints.fingerprint
    monkeypatch.setattr(fingerprints, "fingerprint", lambda path, binary: read.append(path) or really(path, binary))
    names, found, seen = [str(path) for path in paths], [], []
    look = lambda: found.append(fingerprints.fingerprints(names, tmp_path / "cache", 2, seen.append))  # noqa: E731
    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read) == sorted(names)
    assert found == 3 * [[really(name) for name in names]]
    assert sum(seen) == 3 * sum(path.stat().st_size for path in paths)


def test_a_machine_that_fell_silent_is_followed_and_may_come_back(tmp_path):
    target = tmp_path / "part"
    lost: Any = Work([target]).take()
    (lost.adopted() / JOURNAL).write_text("3 bytes are good")
    (lost.aside / "data").write_text("123")
    claim = tmp_path / "part.1.claim"
    claim.write_text(json.dumps(json.loads(claim.read_text()) | {"boot": "another", "host": "node7", "process": 5}))
    patient, hasty = Work([target]), Work([target], silent_seconds=0)
    assert patient.take() is None and patient.holders() == "process 5 on node7"
    follower = hasty.take()
    assert follower is not None and follower.generation == 2
    assert files_of(follower.adopted()) == {JOURNAL: b"3 bytes are good", "data": b"123"}
    with open(lost.aside / "data", "a") as stream:
        stream.write("4")
    assert (follower.aside / "data").read_text() == "123", "the two write in folders of their own"
    follower.finish()
    lost.finish()
    assert files_of(tmp_path) == {f"part/{JOURNAL}": b"3 bytes are good", "part/data": b"123"}


def test_what_fails_is_left_to_the_next(tmp_path):
    said: list[str] = []
    with pytest.raises(ValueError), made_once(tmp_path / "x", said.append) as claim:
        assert claim
        raise ValueError
    with made_once(tmp_path / "x", said.append) as claim:
        assert claim and claim.aside.name == "x.1.partial"
        claim.aside.write_text("made")
    with made_once(tmp_path / "x", said.append) as claim:
        assert claim is None
    assert files_of(tmp_path) == {"x": b"made"} and not said
