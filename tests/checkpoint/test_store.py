"""Checkpoints on real files and in real processes: killed, damaged, forged, on a full disk."""

import hashlib
import itertools
import json
import os
import pickle
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

import trainer.checkpoint
from tests import tiny
from tests.checkpoint.fixed import ALONE, Fixed, value
from tests.distributed import fork, run_distributed
from trainer.checkpoint.boxes import whole
from trainer.checkpoint.files import COMMIT, MANIFEST, CheckpointError, folder_of
from trainer.checkpoint.opening import open_newest, open_one
from trainer.checkpoint.retention import prune
from trainer.checkpoint.store import committed, save
from trainer.settings import DefaultCheckpoint


@pytest.fixture
def root(tmp_path):
    for step in (10, 20):
        save(tmp_path, step, Fixed(float(step)), {"position": 7 * step}, ALONE)
    return tmp_path


def forge(folder, change):
    """Change the manifest and make COMMIT agree: what an attacker would do."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    text = json.dumps(manifest)
    (folder / MANIFEST).write_text(text)
    (folder / COMMIT).write_text(json.dumps({"manifest_sha256": hashlib.sha256(text.encode()).hexdigest()}))


def test_what_was_saved_is_read(root):
    assert [step for step, _ in committed(root)] == [10, 20]
    assert sorted(path.name for path in folder_of(root, 20).iterdir()) == [COMMIT, MANIFEST, "rank-00000.safetensors"]
    opened = open_newest(root, ALONE)
    assert (opened.step, opened.state, opened.read.scalars, opened.problems) == (20, {"position": 140}, {"optimizer_step": 3}, [])
    assert value(opened) == 20.0 and opened.read("scale", "parameter", (), whole(())).item() == 20.0
    assert open_newest(root / "nothing", ALONE) is None


def test_saving_a_step_again_replaces_it(root):
    save(root, 20, Fixed(21.0), {}, ALONE)
    assert value(open_newest(root, ALONE)) == 21.0


def names(root):
    return sorted(path.name for path in root.iterdir())


def test_prune_keeps_the_newest(root):
    (root / ".step-0000030.partial").mkdir()
    (root / "step-0000005").mkdir()  # never committed
    prune(root, DefaultCheckpoint(keep=1), 20)
    assert names(root) == ["step-0000020"]


def test_f10_prune_after_a_fall_back_keeps_the_good_one(root):
    """20 was passed over as damaged; the run went on from 10 and saved 15: the newest good one, whatever lies above it."""
    save(root, 15, Fixed(15.0), {}, ALONE)
    prune(root, DefaultCheckpoint(keep=1), 15)
    assert names(root) == ["step-0000015"]


def test_b08_a_save_that_was_never_committed_is_no_damage(tmp_path):
    """The first save, killed: there is nothing to lose, so the run begins anew, and says what it left aside."""
    (tmp_path / "step-0000010").mkdir()
    (tmp_path / ".step-0000020.partial").mkdir()
    lines = []
    assert open_newest(tmp_path, ALONE, lines.append) is None
    assert "step-0000010 has no COMMIT" in lines[0]


def test_f08_committed_before_it_is_named(root):
    """Killed within the last rename: at no moment of a save is a step that was saved lost."""
    folder = folder_of(root, 20)
    folder.rename(root / ".step-0000020.partial")
    opened = open_newest(root, ALONE)
    assert (opened.step, value(opened)) == (20, 20.0)
    save(root, 30, Fixed(30.0), {}, ALONE)
    assert [step for step, _ in committed(root)] == [10, 20, 30] and folder.is_dir()


def saves_again(root, pipe):
    for number in itertools.count(21):
        save(Path(root), 20, Fixed(float(number)), {}, ALONE)
        pipe.send(number)


def test_f08_killed_while_saving_a_step_again(tmp_path):
    for delay in (0.0, 0.0013, 0.0029, 0.0041, 0.0073):
        process, pipe = fork(saves_again, str(tmp_path))
        seen = max(pipe.recv() for _ in range(3))
        time.sleep(delay)
        process.kill()
        process.join()
        assert value(open_newest(tmp_path, ALONE)) >= seen
        shutil.rmtree(tmp_path)


def dies_before_rename(number):
    """Save, and end like a kill at the rename of that number."""
    seen = itertools.count()
    sys.addaudithook(lambda event, _: os.kill(os.getpid(), signal.SIGKILL) if event == "os.rename" and next(seen) == number else None)


def saves_twice(root, number, pipe):
    save(Path(root), 20, Fixed(20.0), {}, ALONE)
    dies_before_rename(number)
    save(Path(root), 20, Fixed(21.0), {}, ALONE)
    pipe.send("done")


def test_f08_killed_at_every_rename_of_a_save(tmp_path):
    """Each moment by number: writing the index, the manifest and COMMIT, the old folder out of sight, the new one into its place."""
    values = []
    for number in range(10):
        root = tmp_path / str(number)
        process, _pipe = fork(saves_twice, str(root), number)
        process.join()
        values.append(value(open_newest(root, ALONE)))
        if process.exitcode == 0:
            break
    assert process.exitcode == 0 and len(values) >= 5 and set(values) == {20.0, 21.0} and values == sorted(values)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a byte flipped": (lambda folder: flip(folder / "rank-00000.safetensors"), "rank-00000.safetensors does not have the checksum"),
    "truncated": (lambda folder: os.truncate(folder / "rank-00000.safetensors", 40), "rank-00000.safetensors has 40 bytes"),
    "shard deleted": (lambda folder: (folder / "rank-00000.safetensors").unlink(), "rank-00000.safetensors is missing"),
    "manifest deleted": (lambda folder: (folder / MANIFEST).unlink(), "manifest.json is missing"),
    "manifest damaged": (lambda folder: flip(folder / MANIFEST), "manifest.json does not have the checksum"),
    "not committed": (lambda folder: (folder / COMMIT).unlink(), "has no COMMIT"),
    "empty commit": (lambda folder: (folder / COMMIT).write_text(""), "is not a checkpoint of ours"),
    "another format": (lambda folder: forge(folder, lambda manifest: manifest.update(format=99)), "has format 99"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_f10_b08_a_damaged_checkpoint_is_named_and_the_one_before_is_used(root, damage):
    act, words = DAMAGE[damage]
    act(folder_of(root, 20))
    lines = []
    opened = open_newest(root, ALONE, lines.append)
    assert opened.step == 10 and value(opened) == 10.0
    assert len(opened.problems) == 1 and words in opened.problems[0]
    assert "going on from" in lines[0] and "step-0000010" in lines[0] and words in lines[0]
    with pytest.raises(CheckpointError, match=words):
        open_one(folder_of(root, 20), ALONE)


def test_b08_where_none_is_whole_the_run_does_not_begin_anew_silently(root):
    for step in (10, 20):
        DAMAGE["truncated"][0](folder_of(root, step))
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole: .*step-0000020.*step-0000010.*resume.overwrite"):
        open_newest(root, ALONE)


@pytest.mark.parametrize(
    "name", ["../step-0000010/rank-00000.safetensors", "/etc/passwd", "rank-00000.safetensors/..", "sub/rank-00000.safetensors"]
)
def test_s02_names_that_lead_elsewhere_are_refused(root, name):
    folder = folder_of(root, 20)
    forge(folder, lambda manifest: [entry.update(file=name) for entry in (*manifest["files"], *manifest["pieces"])])
    with pytest.raises(CheckpointError, match="the manifest names the file"):
        open_one(folder, ALONE)


@pytest.mark.parametrize("target", ["rank-00000.safetensors", MANIFEST, COMMIT])
def test_s02_links_are_refused(root, target):
    path = folder_of(root, 20) / target
    shutil.copy(path, root / "elsewhere")
    path.unlink()
    path.symlink_to(root / "elsewhere")
    with pytest.raises(CheckpointError, match="is not a regular file"):
        open_one(folder_of(root, 20), ALONE)


class Exploit:
    def __reduce__(self):
        return (os.mkdir, ("exploited",))


def test_s01_a_pickle_is_never_executed(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = folder_of(root, 20)
    shard = folder / "rank-00000.safetensors"
    shard.write_bytes(pickle.dumps(Exploit()))

    def agree(manifest):
        manifest["files"][0].update(bytes=shard.stat().st_size, blocks=[hashlib.sha256(shard.read_bytes()).hexdigest()])

    forge(folder, agree)
    opened = open_one(folder, ALONE)
    with pytest.raises(Exception, match=r"(?i)header"):
        value(opened)
    assert not Path("exploited").exists()
    sources = Path(trainer.checkpoint.__file__).parent.glob("*.py")
    assert not any(word in source.read_text() for source in sources for word in ("import pickle", "torch.load", "torch.save"))


def test_b08_another_models_checkpoint_is_refused_by_name(root):
    read = open_newest(root, ALONE).read
    with pytest.raises(CheckpointError, match=r"holds no parameter of a\.weights; did you mean 'a.weight'"):
        read("a.weights", "parameter", (3, 5), whole((3, 5)))
    with pytest.raises(CheckpointError, match=r"holds no exp_avg of a.weight \(of it: parameter\)"):
        read("a.weight", "exp_avg", (3, 5), whole((3, 5)))
    # A model of fewer rows must not take the first of them silently.
    with pytest.raises(CheckpointError, match=r"a.weight has shape \(3, 5\), the model's has \(2, 5\)"):
        read("a.weight", "parameter", (2, 5), whole((2, 5)))


def test_pieces_that_do_not_make_up_a_tensor_are_refused(tmp_path):
    torn = Fixed()
    torn.pieces = lambda: (piece for piece in [next(Fixed().pieces())] * 2)
    with pytest.raises(CheckpointError, match="overlap"):
        save(tmp_path, 1, torn, {}, ALONE)
    assert committed(tmp_path) == []


def saves_forever(root, pipe):
    for step in itertools.count(1):
        save(Path(root), step, Fixed(float(step)), {}, ALONE)
        pipe.send(step)


def test_f08_killed_while_saving(tmp_path):
    """SIGKILL at moments all over a save: what is committed is whole, and a resume finds the newest of it."""
    for delay in (0.0, 0.0013, 0.0029, 0.0041, 0.0073, 0.011):
        process, pipe = fork(saves_forever, str(tmp_path))
        seen = max(pipe.recv() for _ in range(3))
        time.sleep(delay)
        process.kill()
        process.join()
        opened = open_newest(tmp_path, ALONE)
        assert opened.step >= seen and value(opened) == float(opened.step)
        assert all(open_one(folder, ALONE).step == step for step, folder in committed(tmp_path))
        shutil.rmtree(tmp_path)


def full_disk(world, root):
    placement = tiny.place("ddp", "gpt", world)
    root = Path(root)
    save(root, 1, placement, {"good": True}, world)
    if world.rank == 1:
        # Writes beyond this size fail, as on a full disk (ENOSPC there, EFBIG here), on one rank alone.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        save(root, 2, placement, {}, world)
        return "saved"
    except CheckpointError as error:
        message = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    save(root, 3, placement, {}, world)  # there is room again
    return message


def test_f09_a_full_disk_fails_on_every_rank_and_harms_nothing(tmp_path):
    messages = run_distributed(full_disk, 2, str(tmp_path))
    assert all("the checkpoint was not written; rank 1: " in message for message in messages), messages
    assert [step for step, _ in committed(tmp_path)] == [1, 3]
    assert open_one(folder_of(tmp_path, 1), ALONE).state == {"good": True}


def damaged_together(world, root):
    placement = tiny.place("ddp", "gpt", world)
    for step in (1, 2):
        save(Path(root), step, placement, {}, world)
    if world.leads:
        flip(folder_of(Path(root), 2) / "rank-00001.safetensors")
    torch.distributed.barrier()
    opened = open_newest(Path(root), world)
    return [opened.step, *opened.problems]


def test_f10_all_ranks_fall_back_together(tmp_path):
    """Each rank verifies some of the shards; one of them finds the damage, all pass the checkpoint over."""
    for step, problem in run_distributed(damaged_together, 3, str(tmp_path)):
        assert step == 1 and "rank-00001.safetensors does not have the checksum" in problem
