"""`trainer prepare [key=value …]`: tokenize and pack the data of a run ahead of it."""

from __future__ import annotations

SUMMARY = "tokenize and pack the data, once, without a device"


def run(words: list[str]) -> int:
    """Compose and prepare; a second call finds everything in the cache."""
    from trainer.words import composed

    request = composed(words, "prepare")
    for config in request or []:
        from trainer.data.corpus import open_corpus
        from trainer.data.prepare import prepare

        prepared = prepare(config)
        config.task.baselines(open_corpus(prepared.corpus, prepared.rows, config))
    return 0
