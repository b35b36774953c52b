"""Files behind URLs: a real server, fetched once, known again, told of when it is gone."""

from __future__ import annotations

import contextlib
import logging
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

from tests.data.corpora import decoded, prepared, text_source
from trainer.choices import ConfigError
from trainer.data.record_sources import Jsonl


@contextlib.contextmanager
def serving(folder):
    """A web server of a folder; yields its address and the list of (method, path) that it was asked."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, code="-", size="-"):
            asked.append((self.command, self.path, int(code)))

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def web(tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    for name in ("b", "a"):
        (folder / f"{name}.jsonl").write_text("".join(f'{{"text": "{name}, record {number}"}}\n' for number in range(40)))
    (folder / "notes.md").write_text("no records\n")
    return folder


def downloads(asked):
    return sorted(path for method, path, code in asked if method == "GET" and path.endswith("l") and code == 200)


def test_files_of_a_web_server_are_fetched_once_and_equal_local_ones(web, cache, caplog):
    local = prepared(Jsonl(path=str(web), processes=1))
    with serving(web) as (address, asked):
        for path in (f"{address}/", f"{address}/*.jsonl", [f"{address}/b.jsonl", f"{address}/a.jsonl"]):
            remote = prepared(Jsonl(path=path, processes=1))
            assert remote.fingerprint == local.fingerprint
        assert downloads(asked) == ["/a.jsonl", "/b.jsonl"], "once, whatever way they were named"
        (web / "a.jsonl").write_text('{"text": "changed"}\n' * 50)
        changed = prepared(Jsonl(path=f"{address}/", processes=1))
        assert "changed" in decoded(changed, "train") + decoded(changed, "eval")
        assert downloads(asked) == ["/a.jsonl", "/a.jsonl", "/b.jsonl"]
    with caplog.at_level(logging.WARNING):
        assert prepared(Jsonl(path=f"{address}/", processes=1)).fingerprint == changed.fingerprint
    assert "does not answer" in caplog.text and "fetched before" in caplog.text


def test_b13_a_url_that_is_not_there_or_does_not_answer_says_so(web, cache):
    with serving(web) as (address, _):
        with pytest.raises(ConfigError, match=r"data\.path: 'http://.*/c\.jsonl' is not there: .*404"):
            Jsonl(path=f"{address}/c.jsonl").listing()
        with pytest.raises(ConfigError, match="names no file; put a pattern in quotes"):
            Jsonl(path=f"{address}/*.json").listing()
    with pytest.raises(ConfigError, match=r"cannot be reached: .*Without a network: fetch the files on a machine that has one.*local path"):
        Jsonl(path=f"{address}/a.jsonl").listing()
    with pytest.raises(ConfigError, match=r"'nonsense://a': ValueError: Protocol not known: nonsense; allowed: https://"):
        Jsonl(path="nonsense://a").listing()


def test_s09_what_comes_from_a_url_is_looked_at_as_any_file(web, cache):
    (web / "model.pkl").write_bytes(b"cos\nsystem\n")
    (web / "plain.txt").write_bytes(b"\x80\0binary")
    with serving(web) as (address, asked):
        with pytest.raises(ConfigError, match=r"http://.*/model\.pkl: a \.pkl file is not text; allowed: UTF-8 text"):
            prepared(text_source(f"{address}/model.pkl"))
        assert not any(method == "GET" for method, *_ in asked), "a name is enough"
        with pytest.raises(ConfigError, match=r"http://.*/plain\.txt: binary \(a zero byte at offset 1\)"):
            prepared(text_source(f"{address}/plain.txt"))


def test_other_file_systems_and_file_urls(web, cache):
    local = prepared(Jsonl(path=str(web), processes=1))
    memory = fsspec.filesystem("memory")
    for path in web.iterdir():
        memory.pipe(f"/corpus/{path.name}", path.read_bytes())
    for path in ("memory://corpus", "memory://corpus/*.jsonl", f"file://{web}", f"file://{web}/*.jsonl"):
        assert prepared(Jsonl(path=path, processes=1)).fingerprint == local.fingerprint, path
    assert len(list((cache / "remote").rglob("*.jsonl"))) == 2
    assert not list((cache / "remote").rglob("*.partial"))
    memory.rm("/corpus", recursive=True)
