"""The running interpreter's standard library as a corpus: 11 MB of real text that every machine has, without a network."""

from __future__ import annotations

import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from trainer.choices import ConfigError, nearest
from trainer.data.sources import EVAL, TRAIN, Listing, SourceFile
from trainer.streams import mix

# Tests repeat each other and the code they test; the rest is not the standard library, or no source.
_LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "lib-dynload", "__pycache__"})
_NEAR_COPY = 0.5
_SHORTEST_LINE = 20


def root() -> Path:
    """Where the library lies."""
    return Path(sysconfig.get_paths()["stdlib"])


def list_standard_library(held_out: float, packages: Sequence[str] = (), by_module: bool = False) -> Listing:
    """Its modules, sorted, each with its split; near-copies are left out.

    held_out: share of the bytes. packages: those that are read; none: all. by_module: held out are modules of every package, not whole
    packages. Raises ConfigError where the interpreter has no library in source form, or no such package.
    """
    top = root()
    files = sorted(path for path in top.rglob("*.py") if not _LEFT_OUT & set(path.relative_to(top).parts))
    if not files:
        raise ConfigError(f"data=stdlib: no source files in {top}; this interpreter ships none, use data=text data.path=…")
    known = {top_level(path, top) for path in files}
    for name in packages:
        if name not in known:
            raise ConfigError(f"data.packages: {name!r} is no package or module of the library in {top}{nearest(name, known)}")
    files = [path for path in files if not packages or top_level(path, top) in packages]
    tables = {path for path in files if path.match("encodings/cp*.py")}
    near = near_copies(path for path in files if path not in tables) | tables
    kept = [path for path in files if path not in near]
    sizes = {path: path.stat().st_size for path in kept}
    chosen = choose_modules(sizes, top, held_out) if by_module else _of_packages(sizes, top, held_out)
    listed = [SourceFile(str(path), EVAL if path in chosen else TRAIN) for path in kept]
    return Listing(listed, f"data=stdlib ({top})", {"near-copies": len(near)})


def top_level(path: Path, top: Path) -> str:
    """The top-level package or module that a file belongs to."""
    return path.relative_to(top).parts[0].removesuffix(".py")


def _of_packages(sizes: Mapping[Path, int], top: Path, share: float) -> set[Path]:
    """The files of whole packages that hold a share of the bytes."""
    packages: Counter[str] = Counter()
    for path, size in sizes.items():
        packages[top_level(path, top)] += size
    chosen = choose_packages(packages, share)
    return {path for path in sizes if top_level(path, top) in chosen}


def choose_modules(sizes: Mapping[Path, int], top: Path, share: float) -> set[Path]:
    """Of every package modules that hold a share of its bytes, at least one of several; modules outside of packages are taken as one."""
    members: dict[str, dict[str, int]] = defaultdict(dict)
    for path, size in sizes.items():
        within = path.relative_to(top)
        members[within.parts[0] if len(within.parts) > 1 else ""][within.as_posix()] = size
    chosen: set[Path] = set()
    for modules in members.values():
        found = choose_packages(modules, share)
        if not found and len(modules) > 1:
            found = {min(modules, key=lambda name: (modules[name], name))}
        chosen |= {top / name for name in found}
    return chosen


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
