"""`trainer try`: a page in a real browser, by the keyboard alone; whom it answers; what it shows for each kind of model."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import psutil
import pytest
import torch

from tests import loops
from tests.tasks import test_classification, test_question_answering, test_relation, test_token_classification, test_writing
from trainer.choices import ConfigError
from trainer.cli import main
from trainer.predicting import Predictor
from trainer.run import RunDir, load_frozen

pytest.importorskip("starlette", reason="starlette is not installed (extra `try`)")
from trainer.trying import forms, server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
# Nothing that a browser does by itself.
_OFF = ("gpu", "quic", "background-networking", "component-update", "sync")
QUIET = ["--no-sandbox", "--no-first-run", *(f"--disable-{each}" for each in _OFF)]


def finished(path: Path) -> Path:
    """Trained for its steps, with `model/`."""
    here = loops.training(loops.single(), path)
    here.loop()
    here.finish()
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    examples = test_classification.sentences(60)
    words = ("steps=20", "global_batch=16", "optim.lr=3e-3")
    return finished(test_classification.ready(tmp_path_factory.mktemp("labels"), examples[:50], examples[50:], *words))


@pytest.fixture(scope="module")
def served(classifier: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Host and port of the page, and its process."""
    command = [sys.executable, "-m", "trainer", "try", f"run={classifier}", "port=0", "device=cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        told = process.stdout.readline()
        found = re.search(r"http://(127\.0\.0\.1:\d+)", told)
        assert found, told + process.stdout.read()
        yield found[1], process
        process.kill()


def asked(place: str, method: str = "GET", path: str = "/", body: bytes | None = None, **headers: str) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection(place, timeout=30)
    connection.putrequest(method, path, skip_host="Host" in headers)
    for name, value in (headers | ({} if body is None else {"Content-Length": str(len(body))})).items():
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    return answer.status, answer.read().decode(), {name.lower(): value for name, value in answer.getheaders()}


def test_s07_it_answers_this_machine_and_its_own_page_alone(served, classifier):
    place, process = served
    form = urlencode({"text": "the red apple <b>"}).encode()
    status, text, headers = asked(place, "POST", body=form)
    assert status == 200 and 'class="verdict"' in text, "without a script too"
    assert "the red apple &lt;b&gt;" in text, "nothing typed is markup"
    assert headers["content-security-policy"].startswith("default-src 'none'; style-src 'self'; script-src 'self';")
    assert asked(place, Host="rebound.example")[0] == 400, "DNS rebinding"
    assert asked(place, "POST", body=form, Origin="http://elsewhere.example")[0] == 403
    assert asked(place, "POST", body=form, Origin=f"http://{place}")[0] == 200
    for path in ("/config.yaml", "/../config.yaml", "/page.html", "/%2e%2e/pyproject.toml", "/docs"):
        assert asked(place, path=path)[0] == 404, path
    assert asked(place, "POST", body=b"text=" + b"a" * server.LARGEST)[0] == 413
    status, text, _ = asked(place, "POST", body=b"text=" + b"a" * (forms.LONGEST + 1))
    assert status == 422 and "20,001 characters; at most 20,000" in text
    assert asked(place, "POST", body=b"text=+")[0] == 422 and asked(place, "POST", body=b"\xff=%ff&")[0] in (400, 422)
    heard = [each.laddr.ip for each in psutil.Process(process.pid).net_connections() if each.status == psutil.CONN_LISTEN]
    assert heard == ["127.0.0.1"]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_person_types_and_reads_without_a_mouse_and_ctrl_c_ends_it(served, classifier):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    place, process = served
    config = load_frozen(classifier / "config.yaml")
    (wanted,) = Predictor(classifier / "model", config, torch.device("cpu")).answers([{"text": "a big saw"}], 100)
    requests, problems = [], []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"http://{place}/")
        page.keyboard.type("a big saw")
        page.keyboard.press("Enter")
        page.wait_for_selector(".verdict")
        assert page.inner_text(".verdict") == wanted["label"]
        rows = dict(zip(page.locator(".bars th").all_inner_texts(), page.locator(".bars td:last-child").all_inner_texts(), strict=True))
        assert rows == {label: f"{100 * chance:.1f} %" for label, chance in wanted["scores"].items()}
        assert page.input_value("textarea >> nth=0") == "a big saw" and page.evaluate("document.activeElement.id") == "text"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "pair"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "BUTTON"
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", "focus is seen"
        unlabelled = "[...document.querySelectorAll('textarea, input[type=number]')].filter(each => !each.labels.length).length"
        assert page.evaluate(unlabelled) == 0
        assert page.evaluate("document.documentElement.scrollWidth") == 390, "nothing is cut on a phone"
        page.fill("#text", "x" * 300)
        page.evaluate("document.querySelector('#text').maxLength = 1e9; document.querySelector('#text').value = 'y'.repeat(20001)")
        page.keyboard.press("Enter")
        page.wait_for_selector("[role=alert]")
        assert "at most 20,000" in page.inner_text("[role=alert]")
        browser.close()
    assert requests and all(url.startswith(f"http://{place}/") for url in requests), requests
    assert [problem for problem in problems if "422" not in problem] == [], "the console is quiet"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0 and "Traceback" not in process.stdout.read()


def form_of(path: Path) -> forms.Form:
    run = RunDir(path)
    return forms.form_of(run, load_frozen(run.config_path), torch.device("cpu"))


def shown(form: forms.Form, **typed: str) -> tuple[dict, str]:
    """What a form answers, and the page of it."""
    given = form.answer(form.read(typed))
    return given, server.Page(form, "run", []).rendered(typed, given).body.decode()


def test_every_word_is_shown_with_its_tag(tmp_path):
    examples = test_token_classification.sentences(30)
    words = ("steps=2",)
    path = finished(test_token_classification.ready(tmp_path, examples[:24], examples[24:], *words))
    given, page = shown(form_of(path), tokens="Is Anna's cat, here?")
    assert [word for word, _, _ in given["words"]] == ["Is", "Anna's", "cat", ",", "here", "?"]
    assert page.count('<span class="word') == 6
    assert forms.kind_of("B-PER") == forms.kind_of("I-PER") == "PER"


def test_an_answer_is_marked_where_it_stands(tmp_path):
    examples = test_question_answering.questions(24, unanswerable=False)
    path = finished(test_classification.ready(tmp_path, examples[:20], examples[20:], *test_question_answering.QA, "steps=1"))
    form, example = form_of(path), examples[21]
    given, page = shown(form, **form.filled(example))
    assert given["marked"] and given["before"] + given["marked"] + given["after"] == example["context"]
    assert f"<mark>{given['marked']}</mark>" in page and given["chances"][0][0] == given["marked"]


def test_a_relation_is_that_of_what_is_marked_and_two_texts_have_a_cosine(tmp_path):
    examples = test_relation.sentences(24)
    path = finished(test_classification.ready(tmp_path, examples[:20], examples[20:], *test_relation.GIVEN, "steps=1"))
    form, (head, tail) = form_of(path), (examples[21]["subj_start"], examples[21]["obj_start"])
    filled = form.filled({"tokens": examples[21]["token"], "head": [head, head + 1], "tail": [tail, tail + 1], "head_type": "PERSON"})
    words = examples[21]["token"]
    assert filled["text"].split()[head] == f"<e1>{words[head]}</e1>" and filled["text"].split()[tail] == f"<e2>{words[tail]}</e2>"
    assert filled["head_type"] == "PERSON"
    typed, plain = (shown(form, **given)[0] for given in (filled, {"text": filled["text"]}))
    assert set(dict(plain["chances"])) == {"eats", "cuts", "no_relation"} and typed != plain, "what a type says is read"
    with pytest.raises(ConfigError, match=r"Sentence: mark one head as <e1>"):
        shown(form, text="nothing is marked")
    texts = [{"anchor": one["source"], "positive": one["target"]} for one in test_writing.pairs(20)]
    other = tmp_path / "other"
    other.mkdir()
    path = finished(test_classification.ready(other, texts[:16], texts[16:], "task=contrastive", "micro_batch=auto", "steps=1"))
    form = form_of(path)
    given, page = shown(form, **form.filled(texts[17]))
    predictor = Predictor(path / "model", load_frozen(path / "config.yaml"), torch.device("cpu"))
    (wanted,) = predictor.answers([texts[17]], 100)
    assert given["number"] == f"{wanted['cosine']:.3f}" in page and shown(form, anchor="a b", positive="a b")[0]["number"] == "1.000"


def test_a_dialogue_goes_on_from_what_was_said(tmp_path):
    examples = test_writing.dialogues(20)
    path = finished(test_writing.ready(tmp_path, "instruct", examples[:16], examples[16:], *test_writing.GPT, "steps=2"))
    form = form_of(path)
    first, page = shown(form, message="hello", temperature="0", max_tokens="4")
    assert [turn["role"] for turn in first["messages"]] == ["user", "assistant"] and "hello" in page
    second, page = shown(form, message="<again>", said=first["said"], temperature="1")
    assert [turn["content"] for turn in second["messages"][:3]] == ["hello", first["messages"][1]["content"], "<again>"]
    assert "&lt;again&gt;" in page and json.loads(second["said"]) == second["messages"]
    assert form.filled(examples[0])["message"].startswith("thing["), "the first turn of a person"
    for said in ("{}x", '["a"]', '[{"role": 1, "content": "a"}]', json.dumps([{"role": "user", "content": "a"}] * 201)):
        with pytest.raises(ConfigError, match="start anew"):
            form.read({"message": "x", "said": said})
    assert shown(form, message="word " * 200)[0], "of what is too long the end is answered"


def test_texts_are_gone_on_with_and_masks_filled(tmp_path):
    texts = loops.write_texts(tmp_path)
    causal = form_of(finished(loops.ready(tmp_path, texts, "steps=1")))
    given, page = shown(causal, prompt="the stone", max_tokens="5")
    assert given["given"] == "the stone" and given["added"] and '<span class="added">' in page
    for typed, said in (({"max_tokens": "0"}, "from 1 to 1000"), ({"temperature": "hot"}, "no number"), ({"prompt": " "}, "nothing in it")):
        with pytest.raises(ConfigError, match=said):
            causal.read({"prompt": "x"} | typed)
    sizes = ("model=bert_tiny", "task=mlm", *loops.GPT)
    masked = form_of(finished(loops.ready(tmp_path, texts, "steps=1", name="masked", sizes=sizes)))
    given, page = shown(masked, prompt="the [MASK] stone [MASK].")
    assert len(given["places"]) == 2 and page.count("<mark>") == 2 and given["rest"] == "."
    assert masked.filled({"text": "one two three"}) == {"prompt": "one [MASK] three"}
    with pytest.raises(ConfigError, match=r"has no \[MASK\]"):
        shown(masked, prompt="none")


def test_what_cannot_be_served_is_told(tmp_path, classifier, capsys):
    assert main(["try", f"run={tmp_path}"]) == 1
    assert "no run there" in capsys.readouterr().err
    (tmp_path / "config.yaml").write_text("")
    assert main(["try", f"run={tmp_path}"]) == 1
    assert "no model/ there yet" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["try", f"run={classifier}", f"port={port}"]) == 1
    assert f"port: {port} on 127.0.0.1: Address already in use; name another, e.g. port={port + 1}" in capsys.readouterr().err
    assert main(["try", f"run={classifier}", "port=99999"]) == 1 and main(["try", f"run={classifier}", "device=gpu"]) == 1
