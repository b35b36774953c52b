"""Where an example stands that a task can make nothing of: its file and line, read anew, for an error alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trainer.data.opening import lines_before
from trainer.data.records import Records
from trainer.tasks import BrokenExample

if TYPE_CHECKING:
    from trainer.data.segments import Format, Segment
    from trainer.data.sources import SourceFile
    from trainer.data.splitting import Plan


@contextmanager
def placing(planned: Plan, split: str) -> Iterator[None]:
    """Let an error of an example of a split name its file and line too."""
    try:
        yield
    except BrokenExample as error:
        raise error.at(place_of(planned, split, error.number)) from error


def place_of(planned: Plan, split: str, number: int) -> str:
    """`file:line` of an example by its number in a split; empty where its format has no lines."""
    from trainer.data.pipeline import read_units

    def is_meant(segment: Segment, text: bytes) -> bool:
        return split == (segment.split or planned.parting.split(planned.parting.hashed(text)))

    segments = (segment for unit in read_units(planned, planned.stretches) for segment in unit.segments)
    return nth(number, segments, planned.layout, planned.files, is_meant)


def nth(
    number: int, segments: Iterable[Segment], layout: Format, files: Sequence[SourceFile], is_meant: Callable[[Segment, bytes], bool]
) -> str:
    """`file:line` of one of the examples that are meant, by its number among them; empty where the format has no lines."""
    if not isinstance(layout, Records) or type(layout).documents is not Records.documents:
        return ""  # made of something else than lines
    for segment in segments:
        texts = [(line, found) for line, found in layout.located(segment) if isinstance(found, bytes)]
        for index, (line, text) in enumerate(texts):
            if index in segment.repeated or not is_meant(segment, text):
                continue
            if not number:
                file = files[segment.file]
                return f"{file.shown}:{line + lines_before(file.path, segment.after) if segment.after else line}"
            number -= 1
    return ""
