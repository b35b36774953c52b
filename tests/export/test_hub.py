"""`push_to_hub`: refused before any work where it could not end well; else the folder arrives at a server that speaks as a hub."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants

from tests.loops import ready, single, train, write_texts
from trainer.choices import ConfigError
from trainer.export.hub import push
from trainer.export.hub import ready as hub_ready
from trainer.verbs.export import run


class Hub(BaseHTTPRequestHandler):
    """What of a hub an upload of small files asks for. state: of the server, all that it was told."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(200, {})

    def do_GET(self):
        state = self.server.state
        if self.path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == "Bearer hf_known"
            account = {"name": "me", "orgs": [{"name": "lab"}], "auth": {"accessToken": {"role": state["role"]}}}
            self.answer(*((200, account) if known else (401, {"error": "Invalid username or password."})))
        elif self.path.startswith("/api/models/") and state["repository"] is not None:
            self.answer(200, {"id": "me/model", "private": state["repository"] == "private", "sha": "0" * 40, "siblings": []})
        else:
            self.answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})

    def do_POST(self):
        state, body = self.server.state, self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            state["created"] = json.loads(body)
            self.answer(200, {"url": f"{constants.ENDPOINT}/me/model"})
        elif self.path == "/api/validate-yaml":
            state["card"] = json.loads(body)["content"]
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            self.answer(200, {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    state["files"][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(200, {"success": True, "commitOid": "1" * 40, "commitUrl": f"{constants.ENDPOINT}/me/model/commit/{'1' * 40}"})
        else:
            self.answer(404, {"error": self.path})

    def answer(self, code, body, headers=None):
        text = json.dumps(body).encode()
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(text)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    """A server in the hub's place, and what it was told."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.state = {"role": "write", "repository": None, "files": {}, "created": None}
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_known")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server.state
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    (folder / "texts").mkdir()
    path = ready(folder, write_texts(folder / "texts"), "steps=1")
    train(single(), path)
    return path


def test_the_folder_arrives_private_and_names_its_place(trained, hub, tmp_path, capsys):
    words = [f"run={trained}", f"output={tmp_path / 'out'}", "push_to_hub=me/model", "private=true"]
    assert run(words) == 0
    assert hub["files"] == {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()}
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= hub["files"].keys()
    assert b"from_pretrained('me/model')" in hub["files"]["README.md"] == hub["card"].encode()
    assert (hub["created"]["name"], hub["created"]["organization"], hub["created"]["visibility"]) == ("model", "me", "private")
    assert capsys.readouterr().out.rstrip().endswith(f"{constants.ENDPOINT}/me/model")


@pytest.mark.parametrize(
    ("name", "state", "token", "told"),
    [
        ("model", {}, "hf_known", "'model'; allowed: OWNER/NAME"),
        ("me/mo del", {}, "hf_known", "'me/mo del': "),
        ("you/model", {}, "hf_known", "the token is of me, who cannot write to you; allowed: me, lab"),
        ("me/model", {"role": "read"}, "hf_known", "the token may only read"),
        ("me/model", {}, "hf_other", "does not accept the token"),
        ("me/model", {"repository": "public"}, "hf_known", "private: true, but me/model is there already, and public"),
    ],
)
def test_what_could_not_end_well_is_told_before_any_work(trained, hub, tmp_path, monkeypatch, name, state, token, told):
    hub.update(state)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ConfigError, match=told):
        run([f"run={trained}", f"output={tmp_path / 'out'}", f"push_to_hub={name}", "private=true"])
    assert not (tmp_path / "out").exists() and hub["created"] is None


def test_without_a_network_or_a_token(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="no token; log in with `hf auth login`, or set HF_TOKEN"):
        hub_ready("me/model", private=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        hub_ready("me/model", private=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:9 does not answer .* `hf upload me/model FOLDER`"):
        hub_ready("me/model", private=False)


def test_an_upload_that_fails_says_what_is_left_to_do(hub, tmp_path):
    api = hub_ready("me/model", private=False)
    with pytest.raises(ConfigError, match=r"push_to_hub: me/model: .*: `hf upload me/model "):
        push(api, "me/model", tmp_path / "missing", private=False, message="x")
