"""Checkpoints in another place too, through fsspec: copied with COMMIT last, kept as here, and read back by what is needed of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.checkpoint.fixed import ALONE, Fixed, value
from tests.checkpoint.test_saving import small_disk
from tests.loops import StopAfter, losses, ready, single, training, write_texts
from trainer.checkpoint import remote, shards
from trainer.checkpoint.boxes import Box
from trainer.checkpoint.files import COMMIT, MANIFEST, CheckpointError, folder_of
from trainer.checkpoint.opening import open_newest
from trainer.checkpoint.reading import Reader
from trainer.checkpoint.remote import Fetched, Remote
from trainer.checkpoint.saving import Saver
from trainer.checkpoint.store import committed, snapshot
from trainer.choices import ConfigError
from trainer.run import RunDir
from trainer.settings import DefaultCheckpoint


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


def copied(here: Path, there: Remote, steps: dict[int, Fixed], keep: int = 9) -> None:
    saver = Saver(here, DefaultCheckpoint(keep=keep, asynchronous=False), ALONE, remote=there)
    for step, state in steps.items():
        saver.save(lambda step=step, state=state: snapshot(step, state, {"position": step}))  # type: ignore[misc]
        saver.wait()
        (ended,) = saver.ended()
        assert ended.written is not None and not ended.upload


def test_a_run_goes_on_where_its_directory_was_lost(tmp_path, texts):
    words = ("save_every=2", "checkpoint.keep=2", f"checkpoint.path=file://{tmp_path}/there", "model.dropout=0.1")
    whole = ready(tmp_path, texts, *words[:2], words[3], name="whole")
    training(single(), whole).loop()
    path = ready(tmp_path, texts, *words)
    training(single(), path, StopAfter(5)).loop()
    assert [each.step for each in Remote(f"{tmp_path}/there").committed()] == [4, 5], "kept there as here"
    before = losses(path)
    shutil.rmtree(path)
    path = ready(tmp_path, texts, *words)
    here = training(single(), path)
    assert here.step == 5 and committed(path / "checkpoints") == []
    here.loop()
    assert before + losses(path) == losses(whole)
    assert [each.step for each in Remote(f"{tmp_path}/there").committed()] == [5, 6]
    assert [file.name for file in (path / "checkpoints").iterdir()] == ["step-0000006"], "what was fetched is gone"

    shutil.rmtree(path)
    damage(Remote(f"{tmp_path}/there"), 6, -1)
    path = ready(tmp_path, texts, *words)
    assert training(single(), path).step == 5
    (fallback,) = RunDir(path).events("fallback")
    assert fallback["used"] == "step-0000005" and "does not have the checksum" in fallback["problems"][0]

    other = ready(tmp_path, texts, *words, "seed=9", name="other")
    with pytest.raises(ConfigError, match=r"checkpoint\.path: .*step-0000005 is of another run"):
        training(single(), other)
    ready(tmp_path, texts, *words, "seed=9", "resume.overwrite=true", name="other")
    assert Remote(f"{tmp_path}/there").committed() == [] and training(single(), other).step == 0


def test_no_room_there_is_told_and_training_goes_on(tmp_path, texts):
    with small_disk(tmp_path / "there", "size=200k") as disk:
        path = ready(tmp_path, texts, "steps=2", "save_every=1", f"checkpoint.path={disk}")
        training(single(), path).finish()
        failed = RunDir(path).events("upload_failed")
        assert failed and "step-0000000 is not in" in failed[0]["reason"] and "No space left" in failed[0]["reason"]
        assert Remote(str(disk)).committed() == [] and (path / "model").is_dir()


class Rows(Fixed):
    """A matrix of many rows, and a scalar."""

    def __init__(self):
        super().__init__()
        self.tensors["a.weight"] = torch.arange(40_000.0).view(2000, 20)


def test_only_what_is_read_is_fetched_and_each_block_is_summed(tmp_path, monkeypatch):
    for module in (shards, remote):
        monkeypatch.setattr(module, "BLOCK", 1 << 12)
    here, there, new = tmp_path / "here", Remote(str(tmp_path / "there")), tmp_path / "new"
    copied(here, there, {1: Rows(), 2: Rows()})
    # What one of ten ranks on ten machines fetches.
    manifest = json.loads(there.text(2, MANIFEST))
    (shard,) = manifest["files"]
    fetched = Fetched(there, 2, new)
    fetched.verify(manifest["files"], 9, 10)
    file = new / shard["file"]
    assert len(shard["blocks"]) == 40 and file.stat().st_blocks * 512 == 4 << 12, "its share of the blocks to sum"
    rows = Reader(new, manifest, fetched)("a.weight", "parameter", (2000, 20), Box((900, 0), (100, 20)))
    assert torch.equal(rows, torch.arange(40_000.0).view(2000, 20)[900:1000])
    assert file.stat().st_size > 160_000 and file.stat().st_blocks * 512 <= 9 << 12, "and the header, and 8,000 bytes"

    # Damaged there after it was summed: what is here is of use, what is not is refused.
    damage(there, 2, 80_000)
    again = Fetched(there, 2, new)
    again.verify(manifest["files"], 9, 10)
    assert torch.equal(Reader(new, manifest, again)("a.weight", "parameter", (2000, 20), Box((900, 0), (100, 20))), rows)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"rank-00000.safetensors does not have the checksum .* at byte 77,824"):
        fetched = Fetched(there, 2, new)
        fetched.verify(manifest["files"], 9, 10)
        Reader(new, manifest, fetched)("a.weight", "parameter", (2000, 20), Box((900, 0), (100, 20)))


def damage(there: Remote, step: int, at: int) -> None:
    """Another byte in the shard of rank 0."""
    shard = Path(there.place(step, "rank-00000.safetensors"))
    data = bytearray(shard.read_bytes())
    data[at] ^= 1
    shard.write_bytes(data)


DAMAGES = ["a shard is missing", "a shard is cut", "a byte is another", "the manifest is damaged", "never uploaded to the end"]


@pytest.mark.parametrize("damaged", DAMAGES)
def test_f10_b08_a_damaged_one_there_is_passed_over(tmp_path, damaged):
    there = Remote(str(tmp_path / "there"))
    copied(tmp_path / "here", there, {1: Fixed(1.0), 2: Fixed(2.0)})
    folder = Path(there.place(2))
    if damaged == "a shard is missing":
        (folder / "rank-00000.safetensors").unlink()
    elif damaged == "a shard is cut":
        (folder / "rank-00000.safetensors").write_bytes(b"short")
    elif damaged == "a byte is another":
        damage(there, 2, -1)
    elif damaged == "the manifest is damaged":
        (folder / "manifest.json").write_text("{}")
    else:
        (folder / COMMIT).unlink()
    opened = open_newest(tmp_path / "new", ALONE, remote=there)
    assert opened.step == 1 and value(opened) == 1.0 and str(opened.path) == there.place(1)
    assert len(opened.problems) == (damaged != "never uploaded to the end")


def test_the_one_here_is_taken_before_the_one_there(tmp_path):
    there = Remote(str(tmp_path / "there"))
    copied(tmp_path / "here", there, {1: Fixed(1.0), 2: Fixed(2.0)}, keep=1)
    opened = open_newest(tmp_path / "here", ALONE, remote=there)
    assert opened.path == folder_of(tmp_path / "here", 2) and opened.read._fetched is None
    (tmp_path / "here" / "step-0000002" / "rank-00000.safetensors").unlink()
    opened = open_newest(tmp_path / "here", ALONE, remote=there)
    assert opened.step == 2 and value(opened) == 2.0 and "is missing" in opened.problems[0]
    shutil.rmtree(tmp_path / "there")
    (tmp_path / "there").write_text("a file where a folder was")
    copied(tmp_path / "more", Remote(str(tmp_path / "elsewhere")), {3: Fixed(3.0)})
    said: list[str] = []
    assert open_newest(tmp_path / "more", ALONE, said.append, there).step == 3
    assert not said or "cannot be read" in said[0]


@pytest.mark.parametrize(
    ("path", "told"),
    [("s3://bucket/run", "s3fs"), ("nowhere://x", "Protocol not known"), ("/proc/no/such", "cannot be written to")],
)
def test_a_place_that_cannot_be_written_to_is_refused_before_launch(path, told):
    if path.startswith("s3") and __import__("importlib").util.find_spec("s3fs"):
        pytest.skip("s3fs is here")
    with pytest.raises(ConfigError, match=rf"checkpoint\.path: .*{told}"):
        DefaultCheckpoint(path=path).verify()
