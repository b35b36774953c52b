"""conf/experiment/: each recipe is a document, and has a sibling that rehearses it offline; those are trained here, on real text."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from tests.loops import losses, single, training
from trainer import compose
from trainer.front_door import make_ready
from trainer.reference import EXPERIMENT, Preset, presets
from trainer.run import RunDir
from trainer.words import composed

RECIPES = presets(EXPERIMENT)
OFFLINE = [name for name in RECIPES if name.endswith("_offline")]
HUB = [name for name, preset in RECIPES.items() if name not in OFFLINE and not name.startswith("quickstart")]
SMALL = ("model.layers=3", "model.hidden=64", "model.heads=2", "tokenizer.vocab_size=600", "sequence_length=64", "global_batch=8",
         "steps=20", "optim.lr=2e-3", "micro_batch=8", "log_every=1", "strategy=single", "device=cpu", "tracking.wandb=off")  # fmt: skip
# Where a recipe's own data is too much for a test, or has to be given.
DATA = {
    "gpt2_wikitext103": ("data.path=english.txt",),
    "bert_base_chinese": ("data.path=chinese.txt", "tokenizer.vocab_size=2000"),
    "llama": ("data.sources.web.path=english.txt", "data.sources.code.source=text", "data.sources.code.path=code.txt"),
    # In so few steps a model learns of packages how common each is; of other facts more.
    **dict.fromkeys(
        ("bert_sst2", "bert_mnli", "bert_chnsenticorp", "bert_tnews"),
        ("data.packages=[idlelib,json,wsgiref]", "global_batch=32", "micro_batch=32"),
    ),
    "bert_conll2003": ("data.packages=[json,html,email]",),
    "bert_squad": ("data.packages=[json,html,email]", "sequence_length=96", "task.stride=16"),
    **dict.fromkeys(("t5_", "gpt2_e2e"), ("data.packages=[json,html,email]", "task.generate=false", "sequence_length=128")),
    "": ("data=text", "data.path=english.txt"),
}
# What a recipe begins with, whose own test may have run before: a teacher, a base.
FIRST = {"distilbert_offline": "bert_base_phase1_offline", "gpt2_e2e_lora_offline": "quickstart"}


def labelled(preset: Preset) -> dict[str, str]:
    """The paragraphs of a header that begin with a word and a colon."""
    found = (re.match(r"([A-Z]\w+): (.*)", paragraph) for paragraph in preset.paragraphs)
    return {match[1]: match[2] for match in found if match}


@pytest.mark.parametrize("name", RECIPES)
def test_a_header_says_how_on_what_and_what_to_expect(name: str) -> None:
    commands = [shlex.split(paragraph) for paragraph in RECIPES[name].paragraphs if paragraph.startswith("  ")]
    assert ["trainer", "train", f"experiment={name}"] in [words[:3] for words in commands]
    for verb, *rest in (words[1:] for words in commands if words[0] == "trainer"):
        if rest != [f"experiment={name}"]:  # what is composed by tests/test_config.py
            assert composed(rest, verb)
    assert {"Hardware", "Expect"} <= set(labelled(RECIPES[name]))


@pytest.mark.parametrize("name", HUB)
def test_a_recipe_has_a_sibling_that_rehearses_it_offline(name: str) -> None:
    sibling = f"{name}_offline"
    assert labelled(RECIPES[name])["Offline"] == f"experiment={sibling}"
    ours, theirs = compose(f"experiment={name}"), compose(f"experiment={sibling}")
    # The same way at a size for a laptop: only the rate is another, and the length of warm-up.
    assert (ours.task, ours.schedule.name) == (theirs.task, theirs.schedule.name)
    assert ours.optim == dataclasses.replace(theirs.optim, lr=ours.optim.lr)
    assert "hub" not in str(theirs.data) and (theirs.tokenizer.name == "train" or theirs.tokenizer.path.startswith("runs/"))
    assert ours.teacher == dataclasses.replace(theirs.teacher, **({"path": ours.teacher.path} if ours.teacher.teaches else {}))
    if ours.init.run:
        assert theirs.init.run == f"{ours.init.run}_offline"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> Path:
    """Real text, in pieces for a test."""
    path = tmp_path_factory.mktemp("recipes")
    (path / "english.txt").write_text((data_folder / "books" / "pride_and_prejudice.md").read_text()[:80_000])
    (path / "code.txt").write_text(Path(shlex.__file__).read_text())
    poems = (data_folder / "zh_poetry" / "poet.tang.0.json").read_text()
    lines = re.findall(r'"([^"]*[\u4e00-\u9fff][^"]*。)"', poems)
    (path / "chinese.txt").write_text("\n".join(lines[:500]))
    return path


def teach(name: str, *given: str) -> None:
    """Train a recipe to its end, if it is not, with its `model/`."""
    config = compose(f"experiment={name}", *SMALL, *given)
    make_ready(config, RunDir(config.output_dir), 1)
    here = training(single(), config.output_dir)
    here.loop()
    here.finish()


@pytest.mark.parametrize("name", OFFLINE)
def test_an_offline_sibling_learns(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    given = next(words for start, words in DATA.items() if name.startswith(start))
    keys = {word.split("=")[0] for word in given}
    if name in FIRST:
        teach(FIRST[name], "data=text", "data.path=english.txt")
        keys |= {"model.layers", "model.hidden", "model.heads", "tokenizer.vocab_size"}
    config = compose(f"experiment={name}", *(word for word in SMALL if word.split("=")[0] not in keys), *given)
    make_ready(config, RunDir(config.output_dir), 1)
    training(single(), config.output_dir).loop()
    seen = losses(Path(config.output_dir))
    assert len(seen) == config.steps
    if config.init.run:
        before = losses(Path(config.init.run))
        assert seen[0] < before[0] - 0.3, "it starts from the weights of the first phase"
    elif name in FIRST:
        # What has learned already has little left to learn in so few steps.
        assert sum(seen[-4:]) / 4 < seen[0] + 0.1, seen
    else:
        assert sum(seen[-4:]) / 4 < seen[0] - 0.3, seen
