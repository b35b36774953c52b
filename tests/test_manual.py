"""What `--help` of a verb that composes a run prints."""

from __future__ import annotations

import pytest

from trainer import reference
from trainer.choices import ConfigError
from trainer.config import GROUPS
from trainer.manual import show


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def show_at(*words: str, width: int = 120) -> str:
        monkeypatch.setenv("COLUMNS", str(width))
        show("train", list(words))
        return capsys.readouterr().out

    return show_at


@pytest.mark.parametrize("width", [60, 80, 140])
def test_everything_fits_the_terminal(printed, width: int) -> None:
    out = printed(width=width)
    assert max(map(len, out.splitlines())) <= width
    for option in reference.run_options():
        assert f"{option.key}=" in out
    for group in GROUPS:
        assert f"\n{group}=" in out
        assert all(name in out for name in reference.names(group))
    assert "peak learning rate" in " ".join(out.split()) and "experiment=quickstart_bert" in out


def test_types_allowed_values_and_the_role_are_said(printed) -> None:
    lines = {line.split("=")[0].strip("● "): line for line in printed("tracking", "optim.lr").splitlines() if "=" in line}
    assert "auto | online | offline | off" in lines["tracking.wandb"] and "●" not in lines["tracking.wandb"]
    assert "optim.lr=0.0006" in lines["optim.lr"] and "float" in lines["optim.lr"] and lines["optim.lr"].startswith("●")


def test_words_narrow(printed) -> None:
    group = printed("optim")
    assert "optim=muon" in group and "optim=adamw" in group and "optim.lr=" in group and "model=" not in group
    choice = printed("optim=muon")
    assert "optim.momentum=0.95" in choice and "optim.lr=" in choice and "optim=adamw" not in choice
    assert printed("schedule.warmup").count("=") == 1 and "schedule.warmup=0.05" in printed("warmup")
    both = printed("--help", "optim=muon", "schedule")
    assert "optim.momentum=" in both and "schedule.warmup=" in both
    composed = printed("model=bert_base", "--help", "model.layers")
    assert "model.layers=12" in composed and "model.hidden" not in composed, "what stands before --help is composed"


def test_an_option_of_a_choice_that_is_not_in_use_is_found(printed) -> None:
    out = printed("whole_word")
    assert "task=mlm_nsp" in out and "task.whole_word=false" in out


def test_values_are_those_of_the_composition_even_one_that_cannot_run(printed) -> None:
    assert "optim.lr=0.5" in printed("lr", "optim.lr=0.5")
    assert "data.path=null" in printed("data=text")


def test_a_recipe_shows_its_document(printed) -> None:
    out = printed("experiment=quickstart")
    assert "Hardware:" in out and "trainer train experiment=quickstart" in out and "steps=1600" in out


def test_an_unknown_word_shows_the_nearest(printed) -> None:
    with pytest.raises(ConfigError, match="'optim'"):
        printed("optm")
    with pytest.raises(ConfigError, match=r"'model\.layers'"):
        printed("model.layrs")
