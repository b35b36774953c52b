"""The running interpreter's standard library as a corpus: 11 MB of real text that every machine has, without a network."""

from __future__ import annotations

import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from trainer.choices import ConfigError
from trainer.data.sources import EVAL, TRAIN, Listing, SourceFile
from trainer.streams import mix

# Tests repeat each other and the code they test; the rest is not the standard library, or no source.
_LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "lib-dynload", "__pycache__"})
_NEAR_COPY = 0.5
_SHORTEST_LINE = 20


def list_standard_library(held_out: float) -> Listing:
    """Its modules, sorted, each with its split; near-copies are left out. held_out: share of the bytes.

    Raises ConfigError where the interpreter has no library in source form.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in root.rglob("*.py") if not _LEFT_OUT & set(path.relative_to(root).parts))
    if not files:
        raise ConfigError(f"data=stdlib: no source files in {root}; this interpreter ships none, use data=text data.path=…")
    tables = {path for path in files if path.match("encodings/cp*.py")}
    near = near_copies(path for path in files if path not in tables) | tables
    kept = [path for path in files if path not in near]
    packages: Counter[str] = Counter()
    for path in kept:
        packages[top_level(path, root)] += path.stat().st_size
    chosen = choose_packages(packages, held_out)
    listed = [SourceFile(str(path), EVAL if top_level(path, root) in chosen else TRAIN) for path in kept]
    return Listing(listed, f"data=stdlib ({root})", {"near-copies": len(near)})


def top_level(path: Path, root: Path) -> str:
    """The top-level package or module that a file belongs to."""
    return path.relative_to(root).parts[0].removesuffix(".py")


def choose_packages(sizes: dict[str, int], share: float) -> set[str]:
    """Whole packages, in the order of their hash, until they hold a share of the bytes; one that would overshoot is passed over."""
    wanted = share * sum(sizes.values())
    chosen: set[str] = set()
    held = 0
    for name in sorted(sizes, key=lambda name: (mix("held out", name), name)):
        if held + sizes[name] <= wanted:
            chosen.add(name)
            held += sizes[name]
    return chosen


def near_copies(files: Iterable[Path]) -> set[Path]:
    """Files of which half of the distinct lines stand in one earlier file: code tables, templates, renamed copies.

    Short lines (`return`, `else:`) are common to all code and do not count.
    """
    holders: dict[bytes, list[int]] = defaultdict(list)
    copies = set()
    for number, path in enumerate(files):
        lines = {line for raw in path.read_bytes().splitlines() if len(line := raw.strip()) >= _SHORTEST_LINE}
        shared = Counter(holder for line in lines for holder in holders.get(line, ()))
        if shared and shared.most_common(1)[0][1] >= _NEAR_COPY * len(lines):
            copies.add(path)
            continue
        for line in lines:
            holders[line].append(number)
    return copies
