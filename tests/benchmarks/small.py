"""Sizes at which a benchmark is a test."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SMALL = (
    "data=text",
    f"data.path={ROOT}/trainer/data/*.py",
    "model.layers=2",
    "model.hidden=32",
    "model.heads=2",
    "tokenizer.vocab_size=512",
    "sequence_length=48",
    "global_batch=6",
    "micro_batch=6",
    "optim.lr=3e-3",
)
