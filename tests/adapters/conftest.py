"""What all tests of this folder adapt."""

from __future__ import annotations

import pytest

from tests.adapters.shared import adapted, finish
from tests.loops import ready, write_texts


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="session")
def others(tmp_path_factory):
    """Texts of the same words, but quite unlike those of the base."""
    folder = tmp_path_factory.mktemp("others")
    for number in range(12):
        (folder / f"{number:02}.txt").write_text("\n".join(["alpha beta gamma delta tree. " * 3] * 8))
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory, texts):
    """A finished run of the model itself: model/ is what others are adapted from."""
    path = ready(tmp_path_factory.mktemp("base"), texts, "steps=24", "optim.lr=1e-2")
    finish(path)
    return path


@pytest.fixture(scope="session")
def alone(tmp_path_factory, others, base):
    """LoRA in one process, uninterrupted; its checkpoint at step 2 is kept."""
    path = adapted(tmp_path_factory.mktemp("alone"), others, base, "save_every=2", "checkpoint.keep=9")
    finish(path)
    return path
