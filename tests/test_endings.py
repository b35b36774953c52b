"""How runs end, beside what they compute: extras that fail after the end, what a kill has left behind, what a restart cannot mend."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.loops import StopAfter, ready, single, training, write_texts
from trainer import distributed, front_door
from trainer.checkpoint.files import COMMIT
from trainer.choices import ConfigError
from trainer.export import replace_folder
from trainer.rank import _train
from trainer.run import RunDir, load_frozen
from trainer.survival import FINISHED, HALTED, STOPPED
from trainer.tracking.closing import closing
from trainer.tracking.report import REPORT, page


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Path:
    path = ready(tmp_path_factory.mktemp("finished"), texts, "steps=2")
    assert _ended(path) == FINISHED
    return path


def _ended(path: Path, stop: StopAfter | None = None) -> int:
    return _train(load_frozen(path / "config.yaml"), single(), RunDir(path), stop or StopAfter())  # type: ignore[arg-type]


@pytest.mark.parametrize(("words", "last", "code"), [(("optim.lr=1e30", "survival.nan=halt"), None, HALTED), ((), 2, STOPPED)])
def test_trackers_are_closed_however_the_loop_ends(
    tmp_path: Path, texts: Path, capfd: pytest.CaptureFixture[str], words: tuple[str, ...], last: int | None, code: int
) -> None:
    path = ready(tmp_path, texts, *words, "tracking.wandb=offline", "optim.max_norm=null")
    assert _ended(path, StopAfter(last)) == code
    assert "wandb sync" in "".join(capfd.readouterr())


def test_what_a_restart_would_find_again_is_final(tmp_path: Path, texts: Path) -> None:
    path = ready(tmp_path, texts, "save_every=1")
    training(single(), path, StopAfter(1)).loop()
    (found,) = (path / "checkpoints").glob(f"step-*/{COMMIT}")
    found.write_text("{}")
    with pytest.raises(ConfigError, match=r"no checkpoint in .* is whole"):
        _ended(path)


def test_a_finished_run_without_a_report_is_given_one(finished: Path) -> None:
    (finished / REPORT).unlink(missing_ok=True)
    assert front_door.train(load_frozen(finished / "config.yaml")).exit_code == 0
    assert (finished / REPORT).is_file()


def test_extras_that_fail_are_a_line_each(tmp_path: Path, finished: Path) -> None:
    path = shutil.copytree(finished, tmp_path / "run")
    (path / "model" / "config.json").write_text('{"architectures": 7}')
    (path / REPORT).unlink(missing_ok=True)
    (path / REPORT).mkdir()  # a file cannot be put there
    out = io.StringIO()
    closing(path, Console(file=out, width=200))
    text = out.getvalue()
    assert "no sample: " in text and "no report: " in text and "held-out loss" in text and "Traceback" not in text


def test_an_exports_leftovers_stop_no_other_one(tmp_path: Path, finished: Path, texts: Path) -> None:
    """Killed with the older model out of its place, and killed while writing."""
    path = shutil.copytree(finished, tmp_path / "run")
    for left in (".model.old", ".model.1"):
        (path / left).mkdir()
        (path / left / "weights").write_text("left")
    (path / "checkpoints").rename(path / "elsewhere")
    here = training(single(), path)
    here.loop()
    here.finish()
    assert (path / "model" / "config.json").is_file() and not list(path.glob(".model*"))


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name, text in (("new", "1"), ("model", "0"), (".model.old", "-1")):
        (tmp_path / name / "inner").mkdir(parents=True)
        (tmp_path / name / "inner" / "file").write_text(text)
    replace_folder(tmp_path / "new", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and (tmp_path / "model/inner/file").read_text() == "1"


def test_an_event_after_a_torn_line_is_read(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.event("start", step=0)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"time": 1.0, "kind": "che')  # killed here
    run.event("restart", value=float("nan"))
    assert [event["kind"] for event in run.events()] == ["start", "restart"]
    assert json.loads((tmp_path / "events.jsonl").read_text().splitlines()[-1])["value"] is None


def test_bad_events_look_bad(tmp_path: Path) -> None:
    run, bad = RunDir(tmp_path), {"nan", "restart", "failure", "give_up", "killed", "fallback"}
    for kind in ("start", "checkpoint", *sorted(bad)):
        run.event(kind)
    assert {event["kind"] for event in page(tmp_path)["events"] if event["tone"] == "bad"} == bad


def test_names_that_are_out_of_loopback_or_not_ours_are_kept() -> None:
    assert [distributed._reachable(name) for name in ("localhost", "127.0.0.1", "no-such-host.invalid")] == [
        "localhost",
        "127.0.0.1",
        "no-such-host.invalid",
    ]


def test_a_host_whose_name_is_loopback_serves_other_nodes_elsewhere() -> None:
    """As Debian's installers leave /etc/hosts."""
    name = socket.gethostname()
    try:
        if not socket.gethostbyname(name).startswith("127."):
            pytest.skip(f"{name} is not an alias of loopback here")
    except OSError:
        pytest.skip(f"{name} does not resolve here")
    try:
        found = distributed._reachable(name)
    except ConnectionError as error:
        assert "set MASTER_ADDR" in str(error)  # a machine without a network
    else:
        assert not found.startswith("127.")


def test_a_host_without_a_network_is_told_to_name_an_address() -> None:
    """In a network namespace of its own, where nothing but loopback is."""
    if not socket.gethostbyname(socket.gethostname()).startswith("127."):
        pytest.skip("this host's name is not an alias of loopback")
    code = "import socket; from trainer.distributed import _reachable; _reachable(socket.gethostname())"
    done = subprocess.run(["unshare", "-rn", sys.executable, "-c", code], capture_output=True, text=True)
    if "unshare" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert "set MASTER_ADDR to this host's address" in done.stderr
