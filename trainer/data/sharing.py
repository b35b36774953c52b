"""The parts of a source, made by this process and by any others that prepare the same: each takes what is free until all are there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.claims import Claim, Work
from trainer.data.parts import Stretch, key_of, parts_of
from trainer.data.reporting import Reporter


@dataclass(frozen=True)
class Taken:
    """A part of a source, and the right to make it."""

    number: int
    stretches: list[Stretch]
    claim: Claim


# Works on the parts that it is given and finishes their claims. The other argument is told the bytes that are done.
Maker = Callable[[Iterator[Taken], Callable[[int], Any]], None]


def in_parts(stretches: list[Stretch], target: Path, what: str, report: Reporter, make: Maker) -> list[Path]:
    """A folder of each part, in order, all of them made: by `make` here, or elsewhere.

    target: what will be made of the parts; they lie beside it until `remove_parts`. what: is done to them, in words.
    """
    parts = parts_of(stretches)
    folder = target.with_name(f"{target.name}.{key_of(stretches)}.parts")
    sizes = [sum(stretch.size for stretch in part) for part in parts]
    folders = [folder / f"part-{number:05d}" for number in range(len(parts))]
    work, counted = Work(folders), set[Path]()
    number_of = {path: number for number, path in enumerate(folders)}

    def free() -> Iterator[Taken]:
        while claim := work.take():
            number = number_of[claim.target]
            counted.add(claim.target)
            if len(parts) > 1:
                first, last = parts[number][0].file, parts[number][-1].file
                more = f" to {last.shown}" if last.path != first.path else f" from byte {first.start:,}" if first.stop else ""
                report.line(f"{what} part {number + 1} of {len(parts)}: {first.shown}{more}")
            yield Taken(number, parts[number], claim)

    with report.bar(what, sum(sizes)) as advance:
        told = -1
        try:
            while not target.exists():
                make(free(), advance)
                left = work.left()
                for path in sorted(set(folders) - {*left, *counted}):
                    counted.add(path)
                    advance(sizes[number_of[path]])
                if not left:
                    break
                if len(left) != told:
                    told = len(left)
                    report.line(f"waiting for {told} of {len(parts)} parts, which others are {what}: {work.holders()}")
                work.wait()
        finally:
            work.release()
    return folders


def remove_parts(target: Path) -> None:
    """Remove what a target was made of."""
    for folder in target.parent.glob(f"{target.name}.*.parts"):
        shutil.rmtree(folder, ignore_errors=True)
