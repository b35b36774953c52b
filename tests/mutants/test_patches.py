"""The patches of `make mutants` keep up with the code: each applies, and each row has a patch and a test."""

from __future__ import annotations

import subprocess

import pytest

from tests.mutants.run import FOLDER, ROOT, ROWS, patches, row_tests


@pytest.mark.parametrize("row", ROWS)
def test_a_row_has_a_patch_and_a_test(row: str) -> None:
    assert patches([row]), f"no tests/mutants/{row}-*.patch"
    assert row_tests(ROOT, row), f"no test is named test_{row}_…"


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.patch")))
def test_a_patch_applies(name: str) -> None:
    done = subprocess.run(["git", "apply", "--check", "--recount", str(FOLDER / name)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert name.split("-")[0] in ROWS
