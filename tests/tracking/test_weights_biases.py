"""W&B without a network: what is written offline, read back from the file itself; and what an unreachable host costs."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer.network import answers
from trainer.settings import WandbMode
from trainer.tracking import weights_biases
from trainer.tracking.redaction import redacted_words
from trainer.tracking.weights_biases import decide

RUN = """
import sys, time
from pathlib import Path
from trainer.config import redacted
from trainer.settings import DefaultTracking
from trainer.tracking import weights_biases
from trainer.tracking.weights_biases import WeightsAndBiases

weights_biases.INIT_SECONDS = 5.0
config = redacted({"model": {"layers": 2}, "data": {"api_key": "hunter2", "token": "hunter2"}, "tokens": 5})
mirror = WeightsAndBiases(DefaultTracking(), config, Path(sys.argv[1]), "name", print)
longest = 0.0
for step in map(int, sys.argv[2].split(",")):
    begun = time.perf_counter()
    mirror.log(step, {"loss": 1 / step, "eval_loss": 2.0, "grad_norm": float("nan"), "text": "left out"})
    longest = max(longest, time.perf_counter() - begun)
mirror.event("restart", 2)
begun = time.perf_counter()
mirror.finish({"loss": 0.25})
print(f"log took at most {longest:.4f} s, finish {time.perf_counter() - begun:.1f} s, mode {mirror.mode}, dropped {mirror.dropped}")
"""


@pytest.fixture(autouse=True)
def _no_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    # A proxy of this machine would answer for hosts that are not there.
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def silent_host() -> Iterator[str]:
    """A host that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def _mirror(run_dir: Path, steps: str, *words: str, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(run_dir), steps, *words],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def records(path: Path) -> list[Any]:
    """The records of a `.wandb` file: a LevelDB log of protocol buffers, in blocks of 32 KiB after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, found, parts, at = path.read_bytes(), [], b"", 7
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if kind == 0:
            break
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            found.append(record)
            parts = b""
    return found


def _history(path: Path) -> list[dict[str, Any]]:
    lines = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            lines.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item})
    return lines


def test_f14_without_a_key_the_run_is_written_offline_and_read_back_whole(tmp_path: Path) -> None:
    out = _mirror(tmp_path, "1,2,4,2", "trainer", "wandb.api_key=hunter2", "--token", "hunter2", "model.layers=2")
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    assert f"wandb sync {path.parent}" in out and "no WANDB_API_KEY" in out

    history = [line for line in _history(path) if "train/loss" in line]
    assert [(line["step"], line["train/loss"], line["eval/loss"]) for line in history] == [
        (1, 1.0, 2.0),
        (2, 0.5, 2.0),
        (4, 0.25, 2.0),
        (2, 0.5, 2.0),
    ]
    assert all("train/text" not in line for line in history)
    assert any("event/restart" in line for line in _history(path))
    axes = [record.metric for record in records(path) if record.WhichOneof("record_type") == "metric"]
    assert any(axis.step_metric == "step" for axis in axes), "an axis of our own: a step may come twice"

    (run,) = (record.run for record in records(path) if record.WhichOneof("record_type") == "run")
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["model"] == {"layers": 2} and config["tokens"] == 5
    assert "model.layers=2" in config["command"]
    assert run.run_id == json.loads((tmp_path / "wandb.json").read_text())["id"]


def test_s06_no_secret_reaches_any_file(tmp_path: Path) -> None:
    out = _mirror(tmp_path, "1", "trainer", "wandb.api_key=hunter2", "--token", "hunter2", "data.password=hunter2")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files if b"hunter2" in path.read_bytes()]
    assert "hunter2" not in out


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["a.token=x", "tokens=5", "tokenizer=train"], ["a.token=<redacted>", "tokens=5", "tokenizer=train"]),
        (["--api-key", "x", "y"], ["--api-key", "<redacted>", "y"]),
        (["--password=x=y", "+my_secret=z", "optim.lr=1"], ["--password=<redacted>", "+my_secret=<redacted>", "optim.lr=1"]),
        (["prompt=the key is x"], ["prompt=the key is x"]),
    ],
)
def test_s06_words_of_a_command_line(words: list[str], shown: list[str]) -> None:
    assert redacted_words(words) == shown


def test_a_resumed_run_has_the_same_id_and_both_attempts_are_to_be_uploaded(tmp_path: Path) -> None:
    _mirror(tmp_path, "1,2")
    time.sleep(1.1)  # W&B names folders by the second
    out = _mirror(tmp_path, "2,3")
    folders = sorted(tmp_path.glob("wandb/offline-run-*"))
    ids = {record.run.run_id for folder in folders for path in folder.glob("*.wandb") for record in records(path) if record.HasField("run")}
    assert len(folders) == 2 and len(ids) == 1
    assert f"wandb sync {folders[0]} {folders[1]}" in out


def test_f14_an_unroutable_host_costs_training_nothing(tmp_path: Path, silent_host: str) -> None:
    for number, host in enumerate((silent_host, "http://10.255.255.1:9", "http://host.invalid")):
        run_dir = tmp_path / str(number)
        run_dir.mkdir()
        begun = time.monotonic()
        out = _mirror(run_dir, "1,2,3", WANDB_API_KEY="k" * 40, WANDB_BASE_URL=host)
        assert time.monotonic() - begun < 25, "the process ends with the run, whatever W&B still wants"
        assert "mode offline" in out and "wandb sync" in out, out
        # Some networks answer for every address themselves; then it is W&B's own question that fails.
        assert "does not answer" in out or (host.startswith("http://10.") and "refused or did not answer" in out), out
        took = float(out.split("log took at most ")[1].split(" s")[0])
        ended = float(out.split("finish ")[1].split(" s")[0])
        assert took < 0.1 and ended < 15, out
        assert "k" * 40 not in out


def test_f14_the_probe_is_bounded(silent_host: str) -> None:
    for url in (silent_host, "http://host.invalid", "no url"):
        begun = time.monotonic()
        assert not answers(url, 0.5)
        assert time.monotonic() - begun < 1.5, url


@pytest.mark.parametrize(("status", "reached"), [("404 Not Found", True), ("502 Bad Gateway", False), ("403 Forbidden", False)])
def test_f14_a_proxy_that_refuses_is_no_answer(status: str, reached: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_answer, args=(server, status), daemon=True).start()
        assert answers(f"http://127.0.0.1:{server.getsockname()[1]}", 5.0) is reached


def _answer(server: socket.socket, status: str) -> None:
    connection, _ = server.accept()
    connection.recv(1000)
    connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
    connection.close()


def test_f14_a_host_that_hangs_after_the_probe_ends_in_an_offline_run(tmp_path: Path) -> None:
    """The probe's HEAD is answered; whatever W&B asks after it is not."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                if connection.recv(4, socket.MSG_PEEK) == b"HEAD":
                    connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    connection.close()

        threading.Thread(target=serve, daemon=True).start()
        begun = time.monotonic()
        out = _mirror(tmp_path, "1,2,3", WANDB_API_KEY="k" * 40, WANDB_BASE_URL=f"http://127.0.0.1:{server.getsockname()[1]}")
        assert time.monotonic() - begun < 30
        assert "refused or did not answer" in out and "wandb sync" in out and "mode offline" in out, out
        assert float(out.split("log took at most ")[1].split(" s")[0]) < 0.1, out


def test_f14_a_full_queue_drops_and_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.settings import DefaultTracking

    release = threading.Event()
    monkeypatch.setattr(weights_biases, "QUEUE_LINES", 5)
    monkeypatch.setattr(weights_biases, "decide", lambda wanted: (release.wait(30), ("off", ""))[1])
    said: list[str] = []
    mirror = weights_biases.WeightsAndBiases(DefaultTracking(), {}, tmp_path, "n", said.append)
    begun = time.monotonic()
    for step in range(50):
        mirror.log(step, {"loss": 1.0})
    assert time.monotonic() - begun < 0.5 and mirror.dropped == 45
    release.set()
    mirror.finish({}, seconds=5)
    assert any("lines were left out" in line for line in said)


def test_the_mode_follows_what_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, silent_host: str) -> None:
    assert decide(WandbMode.off)[0] == "off"
    assert decide(WandbMode.offline)[0] == "offline"
    assert decide(WandbMode.auto)[0] == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert decide(WandbMode.auto)[0] == "off"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_BASE_URL", silent_host)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password " + "k" * 40 + "\n")
    (tmp_path / "netrc").chmod(0o600)
    assert not weights_biases.has_key()
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert weights_biases.has_key()
    assert decide(WandbMode.auto, probe_seconds=0.3)[0] == "offline"
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_answer, args=(server, "404 Not Found"), daemon=True).start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert decide(WandbMode.auto)[0] == "online"


EXTRAS = """
import sys
from pathlib import Path
from trainer import compose
from trainer.distributed import World
from trainer.tracking import Trackers

config = compose("steps=6", "name=a run", "tracking.artifacts=[model,report]", "tracking.alerts=true", "tracking.samples=1")
trackers = Trackers(config, Path(sys.argv[1]), World(0, 1, 0, 1, None, attempt=1), steps=6)
trackers.event("start", 2, resumed_at=2)
trackers.samples(4, [{"prompt": "def ", "text": "def f(x):"}])
trackers.event("nan", 5, at=5, policy="skip", rows=[7, 9])
trackers.event("nan", 6, at=6, policy="halt", rows=[8])
trackers.finish({"loss": 0.5})
"""


def test_samples_alerts_and_artifacts_are_in_the_offline_log(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x" * 1000)
    (tmp_path / "events.jsonl").write_text(
        '{"kind": "failure", "attempt": 0, "rank": 1, "reason": "killed by SIGKILL"}\n{"kind": "restart", "attempt": 1, "from_step": 2}\n'
    )
    done = subprocess.run([sys.executable, "-c", EXTRAS, str(tmp_path)], env=os.environ | {"WANDB_DATA_DIR": str(tmp_path / "staged")},
                          capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    found = records(path)

    alerts = [
        (record.alert.title, record.alert.level, record.alert.text) for record in found if record.WhichOneof("record_type") == "alert"
    ]
    assert [alert[:2] for alert in alerts] == [
        ("a run: restarted", "WARN"), ("a run: a step was not finite", "WARN"), ("a run: halted", "ERROR")]  # fmt: skip
    assert "rank 1: killed by SIGKILL" in alerts[0][2] and "rows [7, 9]" in alerts[1][2] and alerts[2][2].startswith("step 6:")

    kept = {record.artifact.name: record.artifact for record in found if record.WhichOneof("record_type") == "artifact"}
    assert {kept[name].type for name in ("a-run-model", "a-run-report")} == {"model", "report"}
    assert [entry.path for entry in kept["a-run-model"].manifest.contents] == ["model.safetensors"]
    assert (tmp_path / "report.html").exists(), "written before it is kept"

    (table,) = path.parent.glob("files/media/table/samples_*.json")
    assert json.loads(table.read_text())["data"] == [["def ", "def f(x):"]]
    assert any(
        item.nested_key[0] == "samples" for record in found if record.WhichOneof("record_type") == "history" for item in record.history.item
    )
