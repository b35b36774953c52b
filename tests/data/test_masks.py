"""Masks, as one would write them down for a single row, against those of whole micro-batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.corpora import prepared, text_source
from tests.loops import write_texts
from trainer.streams import hash_array, mix, mix_arrays, uniform
from trainer.tasks import Pick
from trainer.tasks.mlm import MaskedLM
from trainer.tasks.mlm_nsp import MaskedLMWithNextSentence

TASKS = [MaskedLM(), MaskedLM(whole_word=True, probability=0.3), MaskedLMWithNextSentence(), MaskedLMWithNextSentence(whole_word=True)]


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    """The training split of a few texts for each of the tasks."""
    source = text_source(f"{write_texts(tmp_path_factory.mktemp('texts'), files=25)}/*.txt")
    kinds = {task.name: prepared(source, task=task, sequence_length=48).split("train") for task in (TASKS[0], TASKS[2])}
    return [kinds[task.name] for task in TASKS]


def documents_of(split, row):
    """Tokens, which of them may be hidden and where sentences begin, of each document of a row."""
    special = split.special
    for start, length, *second in split.rows.pieces(row).tolist():
        tokens, text, begins = [special.cls], [False], [False]
        for at, size in [(start, length), tuple(second[:2])] if second else [(start, length)]:
            tokens += [*split.tokens.read(at, size).tolist(), special.sep]
            text += [True] * size + [False]
            begins += [place in split.sentences for place in range(at, at + size)] + [False]
        yield tokens, text, begins


def by_definition(task, split, pick):
    """What is read, which places are hidden and what stood there, of one row, from the definition."""
    special, key = split.special, mix(split.seed, "mask", pick.epoch, pick.row)
    tokens, text, begins = (list(itertools.chain(*parts)) for parts in zip(*documents_of(split, pick.row), strict=True))
    places = [place for place, may in enumerate(text) if may]
    words, ranked = 0, []
    for place in places:
        words += begins[place] or bool(special.starts_word[tokens[place]]) or not text[place - 1]
        ranked.append((int(hash_array(key, np.array([words if task.whole_word else place]))[0]), place))
    chosen = sorted(place for _, place in sorted(ranked)[: max(1, round(task.probability * len(places)))])
    read = list(tokens)
    for place in chosen:
        draw = uniform(mix(key, "kind"), np.array([place]))[0]
        if draw < 0.9:
            drawn = int(hash_array(mix(key, "token"), np.array([place]))[0]) % special.size
            read[place] = special.mask if draw < 0.8 else drawn
    return read, chosen, [tokens[place] for place in chosen]


@pytest.mark.parametrize("number", range(len(TASKS)))
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_c15_a_micro_batch_is_its_rows_one_by_one(splits, number, data):
    task, split = TASKS[number], splits[number]
    picks = [
        Pick(row, epoch, counted)
        for row, epoch, counted in data.draw(
            st.lists(st.tuples(st.integers(0, len(split.rows) - 1), st.integers(0, 2), st.booleans()), min_size=1, max_size=6)
        )
    ]
    batch, base, read, index, targets = task.collate(split, picks), 0, [], [], []
    for pick in picks:
        ids, chosen, hidden = by_definition(task, split, pick)
        read += ids
        if pick.counted:
            index += [base + place for place in chosen]
            targets += hidden
        base += len(ids)
    assert batch.inputs["input_ids"].tolist() == [read]
    assert batch.inputs["mlm_index"].tolist() == index and batch.inputs["mlm_targets"].tolist() == targets
    lengths = [len(document) for pick in picks for document, *_ in documents_of(split, pick.row)]
    assert list(batch.lengths) == lengths and batch.inputs["position_ids"][0].tolist() == [*itertools.chain(*map(range, lengths))]
    assert batch.tokens == sum(int(split.rows.lengths[pick.row]) for pick in picks if pick.counted)


@given(st.integers(-(2**70), 2**70), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2**63 - 1)), min_size=1, max_size=9))
def test_hashes_of_arrays_are_those_of_their_elements(seed, pairs):
    epochs, rows = np.array(pairs, np.int64).T
    keys = mix_arrays(seed, "mask", epochs, rows)
    assert keys.tolist() == [mix(seed, "mask", *pair) for pair in pairs]
    assert mix_arrays(keys, "kind").tolist() == [mix(int(key), "kind") for key in keys]
    assert hash_array(keys, rows).tolist() == [int(hash_array(int(key), np.array([row]))[0]) for key, row in zip(keys, rows, strict=True)]
    assert mix_arrays("a", 1).tolist() == mix("a", 1)
