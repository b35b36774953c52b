"""Saves beside the loop: what they hold, that ranks hear of what fails, a disk that is really full, what is kept."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.distributed import PrefixStore, TCPStore

from tests.checkpoint.fixed import ALONE, Fixed, value
from tests.loops import GPT, StopAfter, lines, ready, single, training, write_texts
from trainer import compose
from trainer.checkpoint.files import CheckpointError, DiskFullError, folder_of
from trainer.checkpoint.opening import open_newest, open_one
from trainer.checkpoint.retention import held, make_room, prune
from trainer.checkpoint.saving import Saver
from trainer.checkpoint.store import committed, save, snapshot, write
from trainer.choices import ConfigError
from trainer.distributed import World
from trainer.run import RunDir
from trainer.settings import BestMode, DefaultCheckpoint


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def pair(tmp_path):
    """Savers of two ranks in this process, as a run has them: rank 0's save ends when rank 1 has begun its own."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    stores = [PrefixStore("host", TCPStore("127.0.0.1", server.port, is_master=False)) for _ in range(2)]
    worlds = [World(rank, 2, rank, 2, torch.device("cpu"), store) for rank, store in enumerate(stores)]
    yield [Saver(tmp_path, DefaultCheckpoint(), world) for world in worlds]
    del server  # it serves as long as it is held


class Half(Fixed):
    """Rank 0 has one tensor, rank 1 the other."""

    def __init__(self, rank: int, value: float = 1.0):
        super().__init__(value)
        self.tensors = dict([list(self.tensors.items())[rank]])


def test_f01_what_is_saved_is_the_state_at_the_border(pair, tmp_path):
    """Nothing is written before rank 1 comes; the state has long changed then."""
    state = Half(0, 1.0)
    pair[0].save(lambda: snapshot(1, state, {}))
    state.tensors["a.weight"].fill_(2.0)
    assert pair[0].ended() == [] and committed(tmp_path) == []
    pair[1].save(lambda: snapshot(1, Half(1), {}))
    for saver in pair:
        saver.wait()
        (ended,) = saver.ended()
        assert ended.step == 1 and ended.written.path == folder_of(tmp_path, 1) and saver.ended() == []
    assert value(open_newest(tmp_path, ALONE)) == 1.0


def test_one_save_at_a_time_and_the_next_one_waits(pair, tmp_path):
    pair[0].save(lambda: snapshot(1, Half(0, 1.0), {}))
    entered = threading.Event()
    second = threading.Thread(target=lambda: (entered.set(), pair[0].save(lambda: snapshot(2, Half(0, 2.0), {}))))
    second.start()
    entered.wait()
    second.join(0.3)
    assert second.is_alive(), "it overwrites what is being written"
    for step in (1, 2):
        pair[1].save(lambda step=step: snapshot(step, Half(1, float(step)), {}))
    second.join()
    for saver in pair:
        saver.wait()
    first, last = pair[0].ended()
    assert (first.step, last.step) == (1, 2) and last.stall_seconds > 0.25, "the loop waited"
    assert [value(open_one(folder, ALONE)) for _, folder in committed(tmp_path)] == [1.0, 2.0]


def test_what_fails_behind_is_heard_on_every_rank(pair, tmp_path):
    (tmp_path / "file").write_text("no folder")
    pair[1].root = tmp_path / "file"
    for rank, saver in enumerate(pair):
        saver.save(lambda rank=rank: snapshot(1, Half(rank), {}))
    for saver in pair:
        with pytest.raises(CheckpointError, match="the checkpoint was not written; rank 1: NotADirectoryError"):
            saver.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_with_and_without_waiting_the_same_bytes_are_saved(tmp_path, texts):
    """The real loop: step 2, 4 and 6, told in the events and the log."""
    words = ("save_every=2", "checkpoint.keep=9")
    for name, asynchronous in (("behind", "true"), ("waiting", "false")):
        path = ready(tmp_path, texts, *words, f"checkpoint.asynchronous={asynchronous}", name=name)
        here = training(single(), path)
        here.loop()
        here.finish()
        events = RunDir(path).events("checkpoint")
        assert [event["step"] for event in events] == [2, 4, 6]
        assert all(event["bytes"] > 100_000 and event["stall_seconds"] > 0 for event in events)
        assert all((event["background_seconds"] > 0) == (asynchronous == "true") for event in events)
        logged = lines(path, "checkpoint_stall_seconds")
        assert logged and all(line["checkpoint_stall_seconds"] > 0 for line in logged)
        assert RunDir(path).summary["checkpoint_stall_seconds"] == pytest.approx(sum(event["stall_seconds"] for event in events))
    for step in (2, 4, 6):
        shards = [folder_of(tmp_path / name / "checkpoints", step) / "rank-00000.safetensors" for name in ("behind", "waiting")]
        assert shards[0].read_bytes() == shards[1].read_bytes()


def test_a_stop_waits_for_what_is_written(tmp_path, texts):
    path = ready(tmp_path, texts, "save_every=3")
    training(single(), path, StopAfter(4)).loop()
    assert [step for step, _ in committed(path / "checkpoints")] == [3, 4]
    assert [event["kind"] for event in RunDir(path).events()][-3:] == ["checkpoint", "checkpoint", "stop"]


# -- a full disk: a tmpfs, and the kernel's own answer --------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, options: str):
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


class Large(Fixed):
    """Half a megabyte."""

    def __init__(self, value=1.0):
        super().__init__(value)
        self.tensors["b"] = torch.full((1 << 17,), value)


def test_f09_no_room_is_told_before_anything_is_written(tmp_path):
    with small_disk(tmp_path / "disk", "size=900k") as root:
        save(root, 1, Large(1.0), {}, ALONE)
        with pytest.raises(DiskFullError, match=r"bytes are needed, [\d,]+ are free"):
            save(root, 2, Large(2.0), {}, ALONE)
        assert [path.name for path in root.iterdir()] == ["step-0000001"] and value(open_newest(root, ALONE)) == 1.0


def fills(disk: Path) -> None:
    """The next one to open a shard finds that another process has just filled the disk."""
    due = [True]

    def hook(event, arguments):
        if event == "open" and str(arguments[0]).endswith(".safetensors") and due:
            due.clear()
            with contextlib.suppress(OSError), (disk / "filler").open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass

    sys.addaudithook(hook)


def test_f09_a_disk_that_fills_up_while_writing(tmp_path):
    """In a process of its own: the hook cannot be taken out again. Also where files, not bytes, are at their limit."""
    code = f"""
from pathlib import Path
from tests.checkpoint.fixed import ALONE
from tests.checkpoint.test_saving import Large, fills
from trainer.checkpoint.files import DiskFullError
from trainer.checkpoint.store import committed, save
root = Path({str(tmp_path / "disk")!r})
save(root, 1, Large(1.0), {{}}, ALONE)
fills(root)
try:
    save(root, 2, Large(2.0), {{}}, ALONE)
except DiskFullError as error:
    assert "No space left on device" in str(error), error
    (root / "filler").unlink()
    assert [path.name for path in root.iterdir()] == ["step-0000001"]
    save(root, 2, Large(2.0), {{}}, ALONE)
    print([step for step, _ in committed(root)])
"""
    with small_disk(tmp_path / "disk", "size=2m"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert done.stdout.strip() == "[1, 2]", done.stderr
    with small_disk(tmp_path / "inodes", "size=9m,nr_inodes=6") as root:
        save(root, 1, Large(1.0), {}, ALONE)
        with pytest.raises(DiskFullError, match="No space left on device"):
            save(root, 2, Large(2.0), {}, ALONE)
        assert [path.name for path in root.iterdir()] == ["step-0000001"]


def checkpoint_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.fixture(scope="module")
def size(tmp_path_factory, texts):
    """Kilobytes of a checkpoint of the tiny model."""
    path = ready(tmp_path_factory.mktemp("size"), texts, "steps=1")
    training(single(), path).finish()
    return checkpoint_bytes(folder_of(path / "checkpoints", 0)) >> 10


def run_on(tmp_path, texts, policy, *words, before=lambda step: None):
    """A run of six steps that saves every two."""
    path = ready(tmp_path, texts, "save_every=2", f"checkpoint.on_full={policy}", *words)
    here = training(single(), path, StopAfter(before=before))
    here.loop()
    here.finish()
    return RunDir(path)


def test_f09_skip_goes_on_and_saves_when_there_is_room_again(tmp_path, texts, size, capsys):
    disk = tmp_path / "run" / "checkpoints"

    def grow(step):
        if step == 6:
            subprocess.run(["mount", "-o", f"remount,size={9 * size}k", str(disk)], check=True)

    with small_disk(disk, f"size={3 * size // 2 + 100}k"):
        run = run_on(tmp_path, texts, "skip", "checkpoint.asynchronous=false", before=grow)
        assert [step for step, _ in committed(disk)] == [2, 6]
        (event,) = run.events("disk_full")
        assert event["step"] == 4 and event["policy"] == "skip" and "bytes are needed" in event["reason"]
        assert "disk_full at step 4" in capsys.readouterr().out


def test_f09_skip_does_not_end_without_the_last_checkpoint(tmp_path, texts, size):
    disk = tmp_path / "run" / "checkpoints"
    with small_disk(disk, f"size={3 * size // 2 + 100}k"):
        with pytest.raises(ConfigError, match=r"checkpoint\.on_full=skip: step 6 is not saved: .*the same command goes on from the newest"):
            run_on(tmp_path, texts, "skip")
        assert [step for step, _ in committed(disk)] == [2] and open_newest(disk, ALONE).step == 2
        assert not (tmp_path / "run" / "summary.json").exists()


def test_f09_prune_gives_up_older_ones_and_halt_ends(tmp_path, texts, size):
    disk = tmp_path / "run" / "checkpoints"
    with small_disk(disk, f"size={5 * size // 2 + 150}k"):
        run = run_on(tmp_path, texts, "prune", "checkpoint.keep=3")
        assert [step for step, _ in committed(disk)] == [4, 6]
        assert "removed to make room: step 2" in run.events("disk_full")[0]["reason"]
    shutil.rmtree(tmp_path / "run")
    with small_disk(disk, f"size={3 * size // 2 + 100}k"):
        with pytest.raises(ConfigError, match=r"checkpoint\.on_full=halt: step 4 is not saved"):
            run_on(tmp_path, texts, "halt")
        assert [step for step, _ in committed(disk)] == [2]


# -- what is kept ---------------------------------------------------------------------------------------------------------------------


def saved(root, losses):
    for step, loss in losses.items():
        taken = snapshot(step, Fixed(float(step)), {}, {"metrics": {"eval_loss": loss}})
        write(root, taken, ALONE)


def test_what_is_kept_and_what_for(tmp_path):
    saved(tmp_path, {10: 3.0, 20: 1.0, 30: None, 40: 2.0, 50: 1.0, 60: 4.0, 70: float("nan"), 80: 5.0})
    rules = DefaultCheckpoint(keep=2, keep_every=40, best="eval_loss")
    start = {folder_of(tmp_path, 30).resolve(): "finetuned"}
    kept = {each.step: each.reasons for each in held(tmp_path, rules, start) if each.reasons}
    assert kept == {
        30: ["finetuned starts from it"],
        40: ["every 40 steps"],
        50: ["best eval_loss"],
        70: ["one of the newest 2"],
        80: ["newest", "every 40 steps"],
    }
    highest = dataclasses.replace(rules, mode=BestMode.max)
    assert [each.step for each in held(tmp_path, highest) if "best eval_loss" in each.reasons] == [80]
    asked = []
    prune(tmp_path, rules, 80, lambda: asked.append(1) or start)
    assert [step for step, _ in committed(tmp_path)] == [30, 40, 50, 70, 80] and asked == [1]
    prune(tmp_path, DefaultCheckpoint(keep=9), 80, lambda: asked.append(1) or start)
    assert asked == [1], "other runs are looked at only where something is to go"
    assert make_room(tmp_path, rules, lambda: start) == [70]
    assert [step for step, _ in committed(tmp_path)] == [30, 40, 50, 80]


def test_a_run_keeps_its_best_and_what_another_starts_from(tmp_path, texts):
    path = ready(tmp_path, texts, "save_every=1", "eval_every=1", "checkpoint.keep=1", "checkpoint.best=eval_loss", "optim.lr=3e-2")
    here = training(single(), path, StopAfter(2))
    here.loop()
    (tmp_path / "other").mkdir()
    other = compose("experiment=quickstart", *GPT, f"init.run={path}@2", f"output_dir={tmp_path / 'other'}")
    from trainer.config import dump

    (tmp_path / "other" / "config.yaml").write_text(dump(other))
    training(single(), path).loop()
    figures = {line["step"]: line["eval_loss"] for line in lines(path, "eval_loss")}
    best = min(figures, key=lambda step: (figures[step], -step))
    assert {step for step, _ in committed(path / "checkpoints")} == {2, best, 6}


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(ConfigError, match=r"checkpoint\.keep_every: 0; allowed: above 0"):
        DefaultCheckpoint(keep_every=0)
    with pytest.raises(ConfigError, match=r"eval_loss with eval_every=300 and save_every=400; .*eval_every=400"):
        compose("experiment=quickstart", "checkpoint.best=eval_loss", "save_every=400", "eval_every=300")
    with pytest.raises(ConfigError, match="allowed: a held-out figure"):
        compose("experiment=quickstart", "checkpoint.best=loss", "save_every=400", "eval_every=400")


def test_a_figure_that_is_not_measured_is_told_with_those_that_are(tmp_path, texts):
    path = ready(tmp_path, texts, "save_every=1", "eval_every=1", "checkpoint.best=eval_los")
    with pytest.raises(ConfigError, match=r"checkpoint\.best: eval_los; held-out figures here: .*did you mean 'eval_loss'"):
        training(single(), path).loop()
