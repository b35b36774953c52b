"""What data costs: tokenizing, loading and packing, the memory of `prepare`, and of a row table that no memory holds.

    python benchmarks/data.py                                      everything: 5 rounds on 32 MB, a quarter of an hour on two cores
    python benchmarks/data.py tokenize load --rounds 2 --size 4    a look at two of the parts

tokenize   MB/s of `prepare`, of the tokenizer library's `encode_batch` and of `datasets.map`: same files, tokenizer, tokens; in turns
load       tokens/s from memory-mapped rows to micro-batches, on one core
memory     the largest memory that `trainer prepare` and its processes hold, on a text and on one ten times as long
table      10¹² rows in sparse files, read all over through the real table, order, deal and loader

The text is English from the folder in TRAINER_DATA (else the standard library's source), its sentences drawn at random into documents.
The tokenizer is GPT-2's where its files are in that folder, else one that is trained.
Prints Markdown and writes it to benchmarks/results/. The exit code is 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks import memory, records, texts  # noqa: E402
from benchmarks.far_rows import read_all_over  # noqa: E402
from benchmarks.pace import Pace, spread, take_turns  # noqa: E402
from benchmarks.peers.rows import Data, packed  # noqa: E402
from benchmarks.peers.tokenizing import WAYS  # noqa: E402
from trainer import compose  # noqa: E402
from trainer.data.batches import Batches  # noqa: E402
from trainer.data.corpus import Split  # noqa: E402
from trainer.data.loading import Loader  # noqa: E402
from trainer.environment import cores  # noqa: E402

PARTS = ("tokenize", "load", "memory", "table")
FASTER, LOADED, GROWTH = 4.0, 20.0, 0.10  # goals: over map by row; million tokens/s a core; of memory at ten times the text
SHOWN = {
    "prepare": "`prepare`, all of it",
    "encode_batch": "`encode_batch_fast` on all threads",
    "map_batched": "`datasets.map`, batched",
    "map_by_row": "`datasets.map`, row by row",
}
TASKS = {
    "clm, rows of 1024": ("task=clm", "sequence_length=1024", "model=gpt2_small"),
    "mlm, rows of 512": ("task=mlm", "sequence_length=512", "model=bert_base"),
    "mlm_nsp, rows of 128": ("task=mlm_nsp", "sequence_length=128", "model=bert_base"),
}


class Bench:
    """A working folder with the text, and the parts over it. size: bytes of text."""

    def __init__(self, folder: Path, size: int, rounds: int, told: Callable[[str], None]):
        self.folder, self.size, self.rounds, self.told = folder, size, rounds, told
        os.environ["TRAINER_CACHE"] = str(folder / "cache")
        self.what, self.sentences = texts.english()
        self.records = folder / "records"
        texts.write_records(self.records, "train", self.sentences, size)
        (self.held_out,) = texts.write_records(folder, "held-out", self.sentences, 200_000, seed=1)

    def tokenizer(self) -> Path:
        """A folder with GPT-2's tokenizer, or with a byte-level BPE of 32,768 tokens."""
        folder, given = self.folder / "tokenizer", Path(os.environ.get("TRAINER_DATA") or ROOT.parent / "shared" / "data") / "gpt2_bpe"
        if not folder.exists():
            folder.mkdir()
            if given.is_dir():
                shutil.copy(given / "encoder.json", folder / "vocab.json")
                shutil.copy(given / "vocab.bpe", folder / "merges.txt")
                (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
            trained = ("tokenizer=pretrained", f"tokenizer.path={folder}") if given.is_dir() else ("tokenizer.vocab_size=32768",)
            # As prepare keeps it: in the form that all of the ways read.
            shutil.copytree(self.packed("task=clm", *trained).open().tokenizer_path, folder, dirs_exist_ok=True)
        return folder

    def packed(self, *words: str) -> Data:
        return packed(compose("data=jsonl", f"data.path={self.records}/*.jsonl", "steps=1", *words))

    def tokenize(self) -> dict[str, Any]:
        """Way → figures by round. Stops where the tokens are not the same."""
        tokenizer, found = self.tokenizer(), dict[str, list[dict[str, Any]]]()

        def turn(way: str) -> Pace:
            with tempfile.TemporaryDirectory(dir=self.folder) as out:
                words = [way, *map(str, (self.records, self.held_out, tokenizer, out, cores()))]
                done = subprocess.run(
                    [sys.executable, "-m", "benchmarks.peers.tokenizing", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE
                )
            figures = json.loads(done.stdout.splitlines()[-1])
            found.setdefault(way, []).append(figures)
            return Pace(figures["wall"] / self.size * 1e6, figures["cpu"] / self.size * 1e6)

        take_turns({way: partial(turn, way) for way in WAYS}, self.rounds, self.told, "MB")
        streams = {way: {figures["digest"] for figures in rounds} for way, rounds in found.items()}
        if len(set.union(*streams.values())) > 1:
            sys.exit(f"the ways give different tokens: {streams}")
        return {"text": self.what, "bytes": self.size, "cores": cores(), "ways": found}

    def load(self) -> dict[str, Any]:
        """What is read → seconds of wall and CPU time a million tokens, by round. Each round a second, from where the last one ended."""
        turns: dict[str, Callable[[], Pace]] = {}
        # As in a rank, which has freed tensors: the C library then keeps freed memory, where it would else return it after every batch.
        np.ones(30 << 17)
        for name, words in TASKS.items():
            config = compose("data=jsonl", "data.path=x", "steps=1", *words)
            split = self.packed(*words).open().split("train")
            rows = 1 << 19 >> (split.sequence_length.bit_length() - 1)  # half a million tokens a step
            loader = Loader(config.task, split, split.order(config.seed), Batches(10**12, rows), rows // 16)
            if name.startswith("clm"):
                turns["the tokens alone"] = paced(copied(split, split.order(1).at(0, len(split.rows))[0].tolist()))
            turns[name] = paced(step.tokens for step in loader.steps())
        return {name: [vars(pace) for pace in found] for name, found in take_turns(turns, self.rounds, self.told, "million tokens").items()}

    def memory(self) -> dict[str, Any]:
        """Bytes of text → the peak of `trainer prepare`, its tokenizer known beforehand, and seconds."""
        tokenizer, found = self.tokenizer(), {}
        for size in (self.size, 10 * self.size):
            folder = self.folder / f"records-{size}"
            texts.write_records(folder, "train", self.sentences, size)
            words = ["data=jsonl", f"data.train={folder}/*.jsonl", f"data.eval={self.held_out}", "tokenizer=pretrained",
                     f"tokenizer.path={tokenizer}", "sequence_length=1024", "steps=1"]  # fmt: skip
            cache = self.folder / f"cache-{size}"
            command = [sys.executable, "-m", "trainer", "prepare", *words]
            found[str(size)] = memory.peak(command, os.environ | {"TRAINER_CACHE": str(cache), "PYTHONPATH": str(ROOT)})
            self.told(f"memory, {size / 1e6:g} MB: {found[str(size)]}")
            shutil.rmtree(folder)
            shutil.rmtree(cache)
        return found

    def table(self) -> dict[str, Any]:
        """In a process of its own kind: what was read before is not its memory."""
        config = compose("data=jsonl", "data.path=x", "steps=1", *TASKS["clm, rows of 1024"])
        split = self.packed(*TASKS["clm, rows of 1024"]).open().split("train")
        return read_all_over(config, split, self.folder / "far", rows=10**12, steps=100)


def copied(split: Split, rows: list[int]) -> Iterator[int]:
    """Reads the first piece of row after row, over and over, and nothing else; yields its tokens."""
    pieces = [split.rows.pieces(row)[0].tolist() for row in rows]
    while True:
        for start, length in pieces:
            yield len(split.tokens.read(start, length))


def paced(counts: Iterator[int], seconds: float = 1.0) -> Callable[[], Pace]:
    """A turn: goes on with tokens, as counted, for so long; the time a million of them took."""

    def turn() -> Pace:
        done, wall, cpu = 0, time.perf_counter(), time.thread_time()
        for count in counts:
            done += count
            if time.perf_counter() - wall > seconds:
                break
        return Pace((time.perf_counter() - wall) / done * 1e6, (time.thread_time() - cpu) / done * 1e6)

    turn()  # the pages are in memory, the code is warm
    return turn


def rate(seconds: list[float], unit: float = 1.0) -> str:
    """Units a second, from seconds each."""
    return str(spread([unit / each for each in seconds]))


def middle(values: list[float]) -> float:
    return spread(values).median


def verdict(said: str, held: bool) -> str:
    return f"{said}: **{'met' if held else 'missed'}**."


def tokenize_markdown(found: dict[str, Any]) -> tuple[str, bool]:
    rows, size = [], found["bytes"] / 1e6
    for way, rounds in found["ways"].items():
        rows.append([SHOWN[way], *(rate([figures[key] for figures in rounds], size) for key in ("wall", "calls", "cpu"))])
    ways = {
        way: {key: middle([figures[key] for figures in rounds]) for key in ("wall", "calls", "cpu")}
        for way, rounds in found["ways"].items()
    }
    ours, limit, slow = ways["prepare"], ways["encode_batch"], ways["map_by_row"]
    good = slow["wall"] >= FASTER * ours["wall"]
    tokens = found["ways"]["prepare"][0]["tokens"]
    text = (
        f"{size:g} MB ({found['text']}, {tokens:,} tokens), {found['cores']} cores. MB/s: median (smallest – largest). *All* is from the "
        "files to what stays on disk, without imports: for `prepare` fingerprints, tokens, the index of documents and packed rows, with "
        "the start of its processes; for the library one stream of ids; for `datasets` its Arrow files. *Tokenizing* is the part that "
        "tokenizes: for the library its calls alone, the limit. CPU time is that of all processes. The tokens are the same."
    )
    shares = (
        f"Of the library's limit `prepare` reaches {limit['calls'] / ours['calls']:.0%} while it tokenizes, and all of it takes "
        f"{ours['wall'] / limit['wall']:.2f} times as long as a script of the library; it is "
        f"{ways['map_batched']['wall'] / ours['wall']:.1f} times as fast "
        "as `datasets.map` in batches."
    )
    table = records.table(["way", "all", "tokenizing", "a second of CPU time"], rows)
    return "\n\n".join(["## Tokenizing", text, table, shares, verdict(f"At least {FASTER:g} times `datasets.map` row by row", good)]), good


def load_markdown(found: dict[str, Any]) -> tuple[str, bool]:
    rows = [[name, *(rate([pace[clock] for pace in paces]) for clock in ("wall", "cpu"))] for name, paces in found.items()]
    rates = {name: 1 / middle([pace["cpu"] for pace in found[name]]) for name in TASKS}
    text = (
        "Million tokens a second on one core, from the memory-mapped rows of a prepared corpus, in the page cache, to micro-batches of "
        "32,768 tokens, as the loop gets them: order, deal, tokens, positions, masks, targets. The first line only copies the tokens."
    )
    good = all(reached >= LOADED for reached in rates.values())
    said = ", ".join(f"{name} {reached:.1f}" for name, reached in rates.items())
    goal = verdict(f"At least {LOADED:g} million tokens a second of CPU time ({said})", good)
    return "\n\n".join(["## Loading and packing", text, records.table(["what", "wall time", "CPU time"], rows), goal]), good


def memory_markdown(found: dict[str, Any]) -> tuple[str, bool]:
    (small, large), rows = found.values(), []
    for size, peak in found.items():
        rows.append([f"{int(size) / 1e6:g} MB", f"{peak['Pss'] / 1e6:.1f} MB", f"{peak['Pss_Anon'] / 1e6:.1f} MB",
                     f"{peak['processes']:g}", f"{peak['seconds']:.0f} s"])  # fmt: skip
    growth = large["Pss"] / small["Pss"] - 1
    good = abs(growth) <= GROWTH
    text = (
        "Peak over time of the sum over `trainer prepare` and the processes it starts; pages that several share are divided between them "
        f"(PSS), sampled every {memory.SAMPLE_SECONDS} s. Without files: anonymous memory alone. The tokenizer is known beforehand."
    )
    table = records.table(["text", "peak", "without files", "processes", "time"], rows)
    goal = verdict(f"Within {GROWTH:.0%} at ten times the text ({growth:+.1%})", good)
    return "\n\n".join(["## Memory of `prepare`", text, table, goal]), good


def table_markdown(found: dict[str, Any]) -> tuple[str, bool]:
    rows = [[moment, *(f"{figures[name] / 1e6:.1f} MB" for name in ("Rss", "Pss_Anon"))] for moment, figures in found["memory"].items()]
    text = (
        f"{found['rows']:,} rows in {found['bytes_apparent'] / 1e12:.0f} TB of sparse files, of which "
        f"{found['bytes_on_disk'] / 1e6:.0f} MB exist; {found['steps']} steps at even distances over ten passes, {found['rows_read']:,} "
        f"rows, as the second of three ranks. Opened in {1000 * found['seconds_open']:.1f} ms; {1000 * found['seconds_a_step']:.1f} ms a "
        "step, each after a seek. Memory of the process:"
    )
    moments = found["memory"]
    grown = (moments["after"]["Rss"] - moments["before"]["Rss"]) / 1e6
    good = grown < 100
    table = records.table(["when", "resident", "of it without files"], rows)
    return "\n\n".join(["## A table of 10¹² rows", text, table, verdict(f"Never in memory ({grown:.1f} MB more)", good)]), good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=float, default=32, help="megabytes of text; `memory` takes ten times as much, too")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results; default: benchmarks/results")
    given = parser.parse_args()
    parts = given.parts or list(PARTS)
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    os.environ["OMP_NUM_THREADS"] = "1"
    sections, figures, good = ["# Data"], dict[str, Any](), True
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), int(given.size * 1e6), given.rounds, partial(print, file=sys.stderr, flush=True))
        # The table first: its memory is that of the process, in which nothing has been read yet.
        for part in sorted(parts, key=["table", *PARTS].index):
            figures[part] = getattr(bench, part)()
    for part in (part for part in PARTS if part in parts):
        text, held = globals()[f"{part}_markdown"](figures[part])
        sections, good = [*sections, text], good and held
    command = " ".join(["python benchmarks/data.py", *sys.argv[1:]])
    software = ", ".join(f"{name} {version}" for name, version in records.versions("tokenizers", "datasets", "numpy").items())
    turns = f"{given.rounds} rounds in turns. " if {"tokenize", "load"} & set(parts) else ""
    text = "\n\n".join([*sections, f"{turns}Made by `{command}` at {records.commit()}.\n{records.hardware()}, {software}"])
    name = "-".join(["data", *(part for part in PARTS if part in parts and len(figures) < len(PARTS))])
    print(text, f"\nwritten to {records.write(name, text, figures, given.out)}", sep="\n")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
