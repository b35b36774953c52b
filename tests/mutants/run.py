"""Bring back known bugs, one at a time, and show that the tests of their row go red.

    make mutants
    .venv/bin/python tests/mutants/run.py c01 c16        (these rows only)
    .venv/bin/python tests/mutants/run.py --green c16    (the suite has just passed: not again without a patch)

Each patch ROW-*.patch in this folder reintroduces the bug of a row. It is applied to a copy of the tree, and the tests whose name carries
the row's id are run there, first of all the one that a line `First: …` above the patch names. Exit code 0: without patches those tests
pass, with each patch they fail, and every row has a patch.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
ROWS = (*(f"c{number:02d}" for number in range(1, 21)), "f01", "f08", "f09", "f10", "f11", "f12", "s01", "s02", "b08", "b10")
TIMEOUT_SECONDS = 1800


@dataclass
class Verdict:
    """What pytest said. code: of its exit, 0 passed, 1 failed, else no run. ran: number of tests. failed: the first that did."""

    code: int
    ran: int
    failed: str
    output: str


def patches(rows: tuple[str, ...] | list[str]) -> list[Path]:
    """The patches of these rows, in order."""
    return [path for path in sorted(FOLDER.glob("*.patch")) if path.name.split("-")[0] in rows]


def row_tests(tree: Path, row: str) -> list[str]:
    """The tests of a row in a tree, as pytest names them: those whose name carries the row's id."""
    pattern = re.compile(rf"^def (test_(?:\w+_)?{row}_\w+)", re.MULTILINE)
    files = sorted((tree / "tests").rglob("test_*.py"))
    return [f"{path.relative_to(tree)}::{name}" for path in files for name in pattern.findall(path.read_text())]


def copy_tree(target: Path) -> None:
    """The files that git knows or would add, and nothing else."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    # An installation in editable mode maps these two to the original tree; links make the copy whole.
    for name in ("conf", "launch"):
        (target / "trainer" / name).symlink_to(target / name)


def first_of(patch: Path) -> list[str]:
    """The test that a patch names as the one that sees it soonest."""
    return re.findall(r"^First: (.+)$", patch.read_text(), re.MULTILINE)


def run_tests(tree: Path, tests: list[str]) -> Verdict:
    """Run tests in a tree, up to the first failure."""
    if not tests:
        return Verdict(5, 0, "", "")
    # Every process of a test imports from the copy, wherever it is started; no compiled file outlives a patch.
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.setdefault("TRAINER_DATA", str(ROOT.parent / "shared" / "data"))
    words = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(words, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired as error:
        return Verdict(124, 0, "", str(error))
    closing = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
    counts = {word: int(count) for count, word in re.findall(r"(\d+) (passed|failed|errors?)", closing)}
    failed = re.search(r"^_+ (?:ERROR at \w+ of )?(test_\S+).* _+$", done.stdout, re.MULTILINE)
    # An error at collection is no failing test: the patch broke an import, which shows nothing.
    code = done.returncode if done.returncode != 1 or counts.get("failed") else 2
    return Verdict(code, sum(counts.values()), failed[1] if failed else "", done.stdout + done.stderr)


def apply(tree: Path, patch: Path, reverse: bool = False) -> str:
    """Apply a patch to a tree; what git said where it does not apply, else nothing."""
    words = ["git", "apply", "--recount", *(["--reverse"] if reverse else []), str(patch)]
    done = subprocess.run(words, cwd=tree, capture_output=True, text=True)
    return done.stderr.strip() if done.returncode else ""


def main() -> int:
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    rows = [word.lower() for word in sys.argv[1:] if not word.startswith("-")] or list(ROWS)
    good = True
    with tempfile.TemporaryDirectory(prefix="shardloom-mutants-") as folder:
        tree = Path(folder)
        copy_tree(tree)
        print(f"{'id':<5}{'patch':<48}{'seconds':>8}  {'':<12}first test that fails")
        for row in rows:
            found = patches([row])
            # Without a patch first: a test that fails anyway shows nothing.
            good = ("--green" in sys.argv or judge(tree, row, None)) and bool(found) and good
            if not found:
                print(f"{row:<5}{'none':<48}{'':>8}  NO PATCH")
            for patch in found:
                good = judge(tree, row, patch) and good
    return 0 if good else 1


def judge(tree: Path, row: str, patch: Path | None) -> bool:
    """Run a row's tests with a patch, or without, and print what became of them. True: they failed with it, or passed without."""
    begun = time.perf_counter()
    complaint = apply(tree, patch) if patch else ""
    verdict = Verdict(-1 if complaint else 0, 0, "", complaint)
    tests = [[first] for first in (first_of(patch) if patch else [])] + [row_tests(tree, row)]
    while verdict.code == 0 and tests:
        verdict = run_tests(tree, tests.pop(0))
    if patch and not complaint:
        apply(tree, patch, reverse=True)
    wanted = 1 if patch else 0
    words = {-1: "NOT APPLIED", 5: "NO TEST", 124: "TIMED OUT"} | ({0: "STAYS GREEN", 1: "red"} if patch else {0: "green", 1: "NOT GREEN"})
    name = patch.stem.partition("-")[2] if patch else f"none: {verdict.ran} tests"
    print(f"{row:<5}{name:<48}{time.perf_counter() - begun:>8.0f}  {words.get(verdict.code, 'BROKEN'):<12}{verdict.failed}")
    if verdict.code != wanted:
        print(verdict.output[-2000:])
    return verdict.code == wanted


if __name__ == "__main__":
    sys.exit(main())
