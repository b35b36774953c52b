"""JSON records to tokens on disk, by one way a process: ours, the tokenizer library by itself, `datasets`.

    python -m benchmarks.peers.tokenizing WAY RECORDS HELD_OUT TOKENIZER OUT CORES

RECORDS: a folder of train-*.jsonl. Prints a JSON object: seconds of wall time and of CPU time of all processes, without what this one
imports; `calls`: seconds within the part that tokenizes; `tokens`, and `digest` of them as one stream, the end of text before each
document.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

Figures = dict[str, Any]
_AT_ONCE = 2048  # documents a call


def ours(records: Path, held_out: Path, tokenizer: Path, out: Path, cores: int) -> Callable[[], Figures]:
    """`prepare`, as `trainer prepare` and `trainer train` call it: tokens, the index of documents and packed rows."""
    os.environ["TRAINER_CACHE"] = str(out)
    from trainer import compose
    from trainer.data import making
    from trainer.data.prepare import prepare
    from trainer.data.vocabularies import load_tokenizer

    load_tokenizer(tokenizer)  # which imports transformers
    config = compose("data=jsonl", f"data.train={records}/train-*.jsonl", f"data.eval={held_out}", f"data.processes={cores}",
                     "tokenizer=pretrained", f"tokenizer.path={tokenizer}", "sequence_length=1024", "steps=1")  # fmt: skip
    found: Figures = {}
    encode_parts = making.encode_parts

    def clocked(*arguments: Any) -> list[Path]:
        began = time.perf_counter()
        parts = encode_parts(*arguments)
        found["calls"] = time.perf_counter() - began
        return parts

    making.encode_parts = clocked  # type: ignore[assignment]

    def run() -> Figures:
        done = prepare(config, progress=False)
        return found | {"streams": sorted((done.corpus / "train").glob("tokens-*.bin"))}

    return run


def library(records: Path, held_out: Path, tokenizer: Path, out: Path, cores: int) -> Callable[[], Figures]:
    """`encode_batch_fast`, thousands of documents a call, on all threads; ids as arrays, written as one stream."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "true", "RAYON_NUM_THREADS": str(cores)}
    from trainer.data.vocabularies import backend

    encoder = backend(tokenizer)
    end = encoder.token_to_id("<|endoftext|>")

    def run() -> Figures:
        calls = 0.0
        with open(out / "stream.bin", "wb") as stream:
            texts = _texts(records)
            while batch := list(islice(texts, _AT_ONCE)):
                began = time.perf_counter()
                found = encoder.encode_batch_fast(batch, add_special_tokens=False)
                calls += time.perf_counter() - began
                for encoding in found:
                    stream.write(np.array([end, *encoding.ids], np.uint16).tobytes())
            stream.write(np.array([end], np.uint16).tobytes())
        return {"calls": calls, "streams": [out / "stream.bin"]}

    return run


def datasets_map(records: Path, held_out: Path, tokenizer: Path, out: Path, cores: int, batched: bool = True) -> Callable[[], Figures]:
    """`datasets.map` with transformers' fast tokenizer; its result is Arrow files of lists of ids."""
    os.environ |= {"HF_DATASETS_CACHE": str(out), "TOKENIZERS_PARALLELISM": "false"}
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer

    disable_progress_bars()
    encoder = AutoTokenizer.from_pretrained(tokenizer)
    files = [str(path) for path in _files(records)]

    def run() -> Figures:
        data = load_dataset("json", data_files=files, split="train")
        began = time.perf_counter()
        found = data.map(lambda rows: {"ids": encoder(rows["text"]).input_ids}, batched=batched, num_proc=cores, remove_columns=["text"])
        return {"calls": time.perf_counter() - began, "rows": found, "end": encoder.eos_token_id}

    return run


WAYS: dict[str, Callable[[Path, Path, Path, Path, int], Callable[[], Figures]]] = {
    "prepare": ours,
    "encode_batch": library,
    "map_batched": datasets_map,
    "map_by_row": partial(datasets_map, batched=False),
}


def _files(records: Path) -> list[Path]:
    return sorted(records.glob("train-*.jsonl"))


def _texts(records: Path) -> Iterator[str]:
    for path in _files(records):
        with open(path) as stream:
            for line in stream:
                yield json.loads(line)["text"]


def stream_of(figures: Figures) -> tuple[int, str]:
    """Number of tokens, and a digest of them as one stream."""
    digest, count = hashlib.sha256(), 0
    if "streams" in figures:
        chunks: Iterator[bytes] = (path.read_bytes() for path in figures["streams"])
    else:
        end, rows = figures["end"], figures["rows"]
        lists = (ids for at in range(0, len(rows), 1000) for ids in [*rows[at : at + 1000]["ids"]])
        chunks = (np.array(ids, np.uint16).tobytes() for ids in [*([end, *ids] for ids in lists), [end]])
    for chunk in chunks:
        digest.update(chunk)
        count += len(chunk) // 2
    return count, digest.hexdigest()


def main() -> None:
    way, records, held_out, tokenizer, out, cores = sys.argv[1], *map(Path, sys.argv[2:6]), int(sys.argv[6])
    run = WAYS[way](records, held_out, tokenizer, out, cores)
    began, busy = time.perf_counter(), sum(os.times()[:4])
    figures = run()
    figures |= {"wall": time.perf_counter() - began, "cpu": sum(os.times()[:4]) - busy}
    figures["tokens"], figures["digest"] = stream_of(figures)
    print(json.dumps({key: value for key, value in figures.items() if key not in ("rows", "streams", "end")}))


if __name__ == "__main__":
    main()
