"""Tokenizing processes: `python -m trainer.data.workers`, fed over its standard streams.

Workers are started by name, not forked, so the caller may hold threads and needs no `if __name__ == "__main__"`; when it dies, however
it dies, their input ends and they end. Frames are JSON and raw arrays, never pickle.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import struct
import subprocess
import sys
from dataclasses import asdict
from typing import IO, Any

import numpy as np

from trainer.data.reading import Unit
from trainer.data.segments import Flaw, Segment
from trainer.data.tokenizing import Encoded, Encoder, Job, Part

_HEAD = struct.Struct("<QQ")


def send(stream: IO[bytes], header: Any, payload: list[bytes | memoryview]) -> None:
    """Write one frame: a JSON header and raw bytes."""
    text = json.dumps(header).encode()
    stream.write(_HEAD.pack(len(text), sum(len(part) for part in payload)))
    stream.write(text)
    for part in payload:
        stream.write(part)
    stream.flush()


def receive(stream: IO[bytes]) -> tuple[Any, bytes] | None:
    """Read one frame; None where the stream has ended."""
    head = stream.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    text, size = _HEAD.unpack(head)
    header, payload = stream.read(text), stream.read(size)
    return (json.loads(header), payload) if len(header) == text and len(payload) == size else None


def pack_unit(unit: Unit) -> tuple[Any, list[bytes | memoryview]]:
    """A unit as a frame."""
    segments = [vars(segment) | {"text": len(segment.text)} for segment in unit.segments]
    return {"index": unit.index, "segments": segments}, [segment.text for segment in unit.segments]


def unpack_unit(header: Any, payload: bytes) -> Unit:
    """The unit of a frame."""
    unit, start = Unit(header["index"]), 0
    for fields in header["segments"]:
        size = fields["text"]
        unit.segments.append(Segment(**fields | {"text": payload[start : start + size]}))
        start += size
    return unit


def pack_encoded(encoded: Encoded) -> tuple[Any, list[bytes | memoryview]]:
    """A result as a frame."""
    header: dict[str, Any] = {"dropped": encoded.dropped, "flaws": [asdict(flaw) for flaw in encoded.flaws], "parts": {}}
    payload: list[bytes | memoryview] = []
    for split, part in encoded.parts.items():
        blobs = [part.tokens.tobytes(), part.documents.tobytes(), part.sentences.tobytes(), part.text]
        header["parts"][split] = {"bytes": part.size, "sizes": [len(blob) for blob in blobs]}
        payload += blobs
    return header, payload


def unpack_encoded(header: Any, payload: bytes, dtype: str) -> Encoded:
    """The result of a frame."""
    result, start = Encoded(dropped=header["dropped"], flaws=[Flaw(**flaw) for flaw in header["flaws"]]), 0
    for split, fields in header["parts"].items():
        blobs = []
        for size in fields["sizes"]:
            blobs.append(payload[start : start + size])
            start += size
        documents, starts = (np.frombuffer(blob, np.int64) for blob in blobs[1:3])
        result.parts[split] = Part(np.frombuffer(blobs[0], np.dtype(dtype)), documents, starts, fields["bytes"], blobs[3])
    return result


class Worker:
    """A process that tokenizes; used by one thread at a time."""

    def __init__(self, job: Job):
        self.job = job
        # The child must find this package wherever we found it, and nothing in the working directory must shadow a library.
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        environment = os.environ | {"PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-P", "-m", "trainer.data.workers"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self.process.stdin and self.process.stdout
        self.input, self.output = self.process.stdin, self.process.stdout
        send(self.input, asdict(job), [])

    def encode(self, unit: Unit) -> Encoded:
        """All of a unit, by split. Raises RuntimeError where the process is gone."""
        try:
            send(self.input, *pack_unit(unit))
            frame = receive(self.output)
        except BrokenPipeError:
            frame = None
        if frame is None:
            self.process.kill()
            raise RuntimeError(
                f"prepare: a tokenizing process ended with code {self.process.wait()} at unit {unit.index} "
                "(-9: out of memory, or killed); finished units are kept, start again, with fewer data.processes if memory is short"
            )
        return unpack_encoded(*frame, self.job.dtype)

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        for stream in (self.input, self.output):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


def main() -> None:
    """Answer units with results until the input ends."""
    # Ctrl-C reaches the whole terminal; the caller ends us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    first = receive(source)
    if first is None:
        return
    encoder = Encoder(Job(**first[0]))
    while frame := receive(source):
        send(sink, *pack_encoded(encoder.encode(unpack_unit(*frame))))


if __name__ == "__main__":
    main()
