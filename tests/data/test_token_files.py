"""Corpora that others tokenized: files written by their documented layouts give the same tokens and rows as the text itself."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.corpora import decoded, files_of, prepared, text_source, whole
from trainer import compose
from trainer.choices import ConfigError
from trainer.data import pipeline, token_files
from trainer.data.reading import Parting, units
from trainer.data.sources import Text
from trainer.data.token_files import IDS, Index, MegatronFormat, NanoGPTFormat, sentences_of
from trainer.data.token_sources import Megatron, NanoGPT
from trainer.data.tokenizers import Pretrained, Train
from trainer.data.tokenizing import sentences
from trainer.data.vocabularies import backend
from trainer.tasks.mlm_nsp import MaskedLMWithNextSentence

LINES = [f"Sentence {line} of it." for line in range(9)]
DOCUMENTS = ["\n".join([f"Document {number} says grün and 字.", *LINES[: number % 10]]) for number in range(60)]
HELD_OUT = 6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Documents as text, in given splits: its folder, and what prepare makes of it."""
    folder = tmp_path_factory.mktemp("text")
    for name, part in (("train", DOCUMENTS[:-HELD_OUT]), ("eval", DOCUMENTS[-HELD_OUT:])):
        (folder / f"{name}.txt").write_text("\n\n".join(part))
    source = text_source("x", document="blank_line")
    source = Text(train=str(folder / "train.txt"), eval=str(folder / "eval.txt"), document=source.document, processes=1)
    trained = prepared(source, tokenizer=Train(vocab_size=400))
    return prepared(source, tokenizer=Pretrained(path=str(trained.tokenizer_path)))


def ids_of(corpus, texts):
    tokenizer = backend(corpus.tokenizer_path)
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def write_nanogpt(path, documents, end, dtype="<u2"):
    np.array([token for document in documents for token in (*document, end)], dtype).tofile(path)


def write_megatron(prefix, documents, code=8, dtype="<u2", gap=0):
    """documents: each a list of sequences. gap: tokens between any two sequences, which belong to none."""
    sequences = [sequence for document in documents for sequence in document]
    places, stream = [], []
    for sequence in sequences:
        places.append(len(stream) * np.dtype(dtype).itemsize)
        stream += [*sequence, *[7] * gap]
    np.array(stream, dtype).tofile(prefix.with_suffix(".bin"))
    starts = np.cumsum([0, *(len(document) for document in documents)])
    with open(prefix.with_suffix(".idx"), "wb") as index:
        index.write(b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(sequences), len(starts)))
        index.write(np.array([len(sequence) for sequence in sequences], "<i4").tobytes())
        index.write(np.array(places, "<i8").tobytes() + starts.astype("<i8").tobytes())
    return prefix


def assert_equal(mine, theirs):
    """The same tokens, documents, rows and held-out text."""
    for split in ("train", "eval"):
        assert files_of(mine.path / split) == files_of(theirs.path / split)
        assert files_of(mine.rows_path / split) == files_of(theirs.rows_path / split)
    figures, expected = mine.meta["splits"], theirs.meta["splits"]
    assert figures["eval"] == expected["eval"] and figures["train"] == expected["train"] | {"bytes": None}


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_nanogpt_files_give_the_rows_of_their_text(tmp_path, corpus, dtype):
    ids, end = ids_of(corpus, DOCUMENTS), corpus.special.eos
    for name, part in (("train", ids[:-HELD_OUT]), ("val", ids[-HELD_OUT:])):
        write_nanogpt(tmp_path / f"{name}.bin", part, end, np.dtype(dtype))
    source = NanoGPT(path=str(tmp_path), processes=1)
    source.dtype = type(source.dtype)(dtype)
    assert_equal(prepared(source, tokenizer=Pretrained(path=str(corpus.tokenizer_path))), corpus)


LLMC = {"uint16": (20240520, 1), "uint32": (20240801, 7)}


def write_llmc(path, documents, end, dtype="uint16", version=None, count=None):
    """A header of 1024 bytes; the end of text before each document."""
    stream = np.array([token for document in documents for token in (end, *document)], dtype)
    magic, known = LLMC[dtype]
    header = np.zeros(256, "<i4")
    header[:3] = magic, known if version is None else version, len(stream) if count is None else count
    path.write_bytes(header.tobytes() + stream.tobytes())
    return path


@pytest.mark.parametrize("dtype", LLMC)
def test_files_of_llmc_give_the_rows_of_their_text(tmp_path, corpus, dtype, monkeypatch):
    monkeypatch.setattr(pipeline, "UNIT_BYTES", 400)
    ids, end = ids_of(corpus, DOCUMENTS), corpus.special.eos
    train, held_out = (write_llmc(tmp_path / f"{name}.bin", part, end, dtype)
                       for name, part in (("shard_train_000001", ids[:-HELD_OUT]), ("shard_val_000000", ids[-HELD_OUT:])))  # fmt: skip
    source = NanoGPT(train=str(train), eval=str(held_out), processes=1)
    source.dtype = type(source.dtype)(dtype)
    tokenizer = Pretrained(path=str(corpus.tokenizer_path))
    assert_equal(prepared(source, tokenizer=tokenizer), corpus)
    # One stream, a part of it held out: no token is lost at the header or at the cut.
    few = NanoGPT(path=str(write_llmc(tmp_path / "few.bin", ids[:5], end, dtype)), held_out=0.2, processes=1)
    few.dtype = source.dtype
    parted = prepared(few, tokenizer=tokenizer)
    assert "".join(decoded(parted, "train") + decoded(parted, "eval")) == "".join(DOCUMENTS[:5])


def test_a_header_of_llmc_that_does_not_fit_is_told(tmp_path, corpus):
    tokenizer = Pretrained(path=str(corpus.tokenizer_path))
    for named, told in (
        ({"dtype": "uint32"}, r"data\.dtype: uint16, but the header of .*a\.bin says uint32; set data\.dtype=uint32"),
        ({"version": 2}, r"a\.bin: a header of llm\.c, magic 20240520, of version 2, which is not known"),
        ({"count": 9}, r"a\.bin: 1,032 bytes, but with the 9 tokens of its header 1,042; it is cut off"),
    ):
        write_llmc(tmp_path / "a.bin", [[5, 6, 7]], 0, **named)
        with pytest.raises(ConfigError, match=told):
            prepared(NanoGPT(path=str(tmp_path / "a.bin")), tokenizer=tokenizer)


@pytest.mark.parametrize(("code", "dtype", "gap", "ends"), [(8, "<u2", 0, True), (4, "<i4", 0, False), (5, "<i8", 3, True)])
def test_megatron_files_give_the_rows_of_their_text(tmp_path, corpus, monkeypatch, code, dtype, gap, ends):
    monkeypatch.setattr(token_files, "_DOCUMENTS", 7)  # read in several runs, and cut into several units
    monkeypatch.setattr(pipeline, "UNIT_BYTES", 400)
    ids, end = ids_of(corpus, DOCUMENTS), corpus.special.eos
    # Sequences of a document follow each other; one without any is none.
    documents = [[document[:3], [*document[3:], *[end] * ends]] for document in ids]
    documents.insert(5, [])
    train = write_megatron(tmp_path / "a_text_document", documents[:-HELD_OUT], code, dtype, gap)
    held_out = write_megatron(tmp_path / "b_text_document", documents[-HELD_OUT:], code, dtype, gap)
    source = Megatron(train=str(train), eval=f"{held_out}.idx", processes=1)
    assert_equal(prepared(source, tokenizer=Pretrained(path=str(corpus.tokenizer_path))), corpus)


def test_megatron_sentences_make_the_pairs_of_bert(tmp_path, corpus):
    texts = [tmp_path / "train.txt", tmp_path / "eval.txt"]
    for path, part in zip(texts, (DOCUMENTS[:-HELD_OUT], DOCUMENTS[-HELD_OUT:]), strict=True):
        path.write_text("\n\n".join(part))
    task = MaskedLMWithNextSentence()
    source = Text(train=str(texts[0]), eval=str(texts[1]), document=text_source("x", document="blank_line").document, processes=1)
    trained = prepared(source, task=task, tokenizer=Train(vocab_size=400))
    tokenizer = Pretrained(path=str(trained.tokenizer_path))
    cut = [ids_of(trained, list(sentences(document))) for document in DOCUMENTS]
    write_megatron(tmp_path / "a", cut[:-HELD_OUT])
    write_megatron(tmp_path / "b", cut[-HELD_OUT:])
    mine = prepared(Megatron(train=str(tmp_path / "a"), eval=str(tmp_path / "b"), processes=1), task=task, tokenizer=tokenizer)
    theirs = prepared(source, task=task, tokenizer=tokenizer)
    for split in ("train", "eval"):
        assert files_of(mine.path / split) == files_of(theirs.path / split)
        assert files_of(mine.rows_path / split) == files_of(theirs.rows_path / split)


def test_one_corpus_of_tokens_has_a_part_held_out(tmp_path, corpus):
    ids, end = ids_of(corpus, DOCUMENTS), corpus.special.eos
    tokenizer = Pretrained(path=str(corpus.tokenizer_path))
    write_nanogpt(tmp_path / "all.bin", ids, end)
    write_megatron(tmp_path / "all_text_document", [[document] for document in ids])
    found = {}
    for source in (NanoGPT(path=str(tmp_path / "all.bin"), processes=1), Megatron(path=str(tmp_path / "all_text_document"), processes=1)):
        found[source.name] = prepared(source, tokenizer=tokenizer)
        train, held_out = (decoded(found[source.name], split) for split in ("train", "eval"))
        assert sorted(train + held_out) == sorted(DOCUMENTS) and len(held_out) == round(0.05 * len(DOCUMENTS))
    assert decoded(found["nanogpt"], "eval") == decoded(found["megatron"], "eval"), "parted by what a document holds"
    write_nanogpt(tmp_path / "few.bin", ids[:5], end)
    write_megatron(tmp_path / "few", [[document] for document in ids[:5]])
    tail = prepared(NanoGPT(path=str(tmp_path / "few.bin"), held_out=0.2), tokenizer=tokenizer)
    assert "".join(decoded(tail, "train") + decoded(tail, "eval")) == "".join(DOCUMENTS[:5])
    whole = prepared(Megatron(path=str(tmp_path / "few"), held_out=0.3), tokenizer=tokenizer)
    assert decoded(whole, "eval") == DOCUMENTS[3:5]


def test_repeated_documents_of_tokens_are_dropped(tmp_path, corpus):
    ids, end = ids_of(corpus, DOCUMENTS), corpus.special.eos
    write_nanogpt(tmp_path / "all.bin", ids + ids[:10], end)
    source = NanoGPT(path=str(tmp_path / "all.bin"), deduplicate=True)
    found = prepared(source, tokenizer=Pretrained(path=str(corpus.tokenizer_path)))
    assert sorted(decoded(found, "train") + decoded(found, "eval")) == sorted(DOCUMENTS)


@given(
    stream=st.lists(st.sampled_from([0, 1, 2, 65_535, 77_777]), max_size=60),
    width=st.sampled_from(["uint16", "uint32"]),
    unit_bytes=st.sampled_from([2, 6, 20, 1000]),
)
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_documents_of_a_stream_do_not_depend_on_units(tmp_path_factory, stream, width, unit_bytes):
    path = tmp_path_factory.getbasetemp() / "stream.bin"
    stream = [token for token in stream if token < 1 << 8 * np.dtype(width).itemsize]
    np.array(stream, width).tofile(path)
    layout, found = NanoGPTFormat(0, 100_000, width), []
    for unit in units(whole(path), layout, Parting(1 << 63), [0], unit_bytes):
        for segment in unit.segments:
            texts = [np.frombuffer(text, IDS).tolist() for text in layout.documents(segment).texts]
            if not segment.opens and texts:
                found[-1] += texts.pop(0)
            found += texts
    expected = [[int(token) for token in part.split()] for part in " ".join(map(str, stream)).replace("0", "|").split("|") if part.strip()]
    assert found == expected


CODES = {1: "<u1", 2: "<i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("unit_bytes", [4, 20, 1000])
def test_an_index_names_sequences_and_documents_in_every_type_of_integer(tmp_path, code, unit_bytes):
    """Documents of one sequence, of several and of none; sequences that lie apart; a mode for each sequence behind it all."""
    prefix = write_megatron(tmp_path / "a", [[[1, 2], [3]], [], [[4]], [[5, 6, 7], [], [8]]], code, CODES[code], gap=1)
    with open(prefix.with_suffix(".idx"), "ab") as index:
        index.write(bytes(6))
    layout, file = MegatronFormat(0, 9), whole(prefix.with_suffix(".bin"))
    texts = [text for unit in units(file, layout, Parting(1 << 63), [0], unit_bytes) for part in unit.segments
             for text in layout.documents(part).texts]  # fmt: skip
    assert [[found.tolist() for found in sentences_of(text)] for text in texts] == [[[1, 2], [3]], [[4]], [[5, 6, 7], [], [8]]]


@pytest.mark.parametrize(("code", "version"), [(6, 1), (7, 1), (9, 1), (8, 2)])
def test_an_index_of_fractions_or_of_another_version_is_refused(tmp_path, code, version):
    prefix = write_megatron(tmp_path / "a", [[[1]]], code)
    data = bytearray(prefix.with_suffix(".idx").read_bytes())
    data[9:17] = struct.pack("<Q", version)
    prefix.with_suffix(".idx").write_bytes(data)
    with pytest.raises(ConfigError, match=rf"a\.idx: no index that can be read \(version {version}, dtype code {code}\)"):
        Index(whole(prefix.with_suffix(".bin"))[0].file)


def test_b04_tokens_that_the_tokenizer_lacks_are_told(tmp_path, corpus):
    tokenizer, size = Pretrained(path=str(corpus.tokenizer_path)), corpus.special.size
    write_nanogpt(tmp_path / "a.bin", [[5, 6], [7, size]], 0)
    with pytest.raises(ConfigError, match=rf"a\.bin: token 4 is {size}, but the tokenizer's largest id is {size - 1}; give the one"):
        prepared(NanoGPT(path=str(tmp_path / "a.bin")), tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=rf"data\.eos: {size}; the tokenizer has ids from 0 to {size - 1}"):
        prepared(NanoGPT(path=str(tmp_path / "a.bin"), eos=size), tokenizer=tokenizer)
    write_megatron(tmp_path / "b", [[[5, 6]], [[-1]]], 4, "<i4")
    with pytest.raises(ConfigError, match=r"b\.bin: token 2 is -1"):
        prepared(Megatron(path=str(tmp_path / "b")), tokenizer=tokenizer)


def test_b06_files_without_a_token_are_told(tmp_path, corpus):
    tokenizer = Pretrained(path=str(corpus.tokenizer_path))
    (tmp_path / "empty.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=rf"data\.path={tmp_path}/empty\.bin: no text; 1 files read, 0 kept; dropped: 1 empty files"):
        prepared(NanoGPT(path=str(tmp_path / "empty.bin")), tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=r"nothing to train on; 1 files read, documents: 0 kept for train"):
        prepared(Megatron(path=str(write_megatron(tmp_path / "none", [[[]]] * 30, gap=3))), tokenizer=tokenizer)


def test_token_files_that_cannot_be_read_are_told(tmp_path, corpus):
    tokenizer = Pretrained(path=str(corpus.tokenizer_path))
    (tmp_path / "odd.bin").write_bytes(b"123")
    with pytest.raises(ConfigError, match=r"odd\.bin: its size is no multiple of 2 bytes"):
        prepared(NanoGPT(path=str(tmp_path / "odd.bin")), tokenizer=tokenizer)
    with pytest.raises(ConfigError, match=r"odd\.idx: No such file.*; data=megatron reads PREFIX\.bin with PREFIX\.idx beside it"):
        prepared(Megatron(path=str(tmp_path / "odd")), tokenizer=tokenizer)
    (tmp_path / "odd.idx").write_bytes(b"TNTIDX\x00\x00" + bytes(40))
    with pytest.raises(ConfigError, match=r"odd\.idx: no index that can be read \(it begins with b'TNTIDX"):
        prepared(Megatron(path=str(tmp_path / "odd")), tokenizer=tokenizer)
    prefix = write_megatron(tmp_path / "cut", [[[number]] for number in range(50)])
    prefix.with_suffix(".bin").write_bytes(bytes(20))
    with pytest.raises(ConfigError, match=r"cut\.bin: its \.idx names tokens beyond its 10"):
        prepared(Megatron(path=str(prefix)), tokenizer=tokenizer)
    prefix.with_suffix(".idx").write_bytes(prefix.with_suffix(".idx").read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"cut\.idx: cut off: 50 sequences and 50 documents do not fit"):
        prepared(Megatron(path=str(prefix)), tokenizer=tokenizer)


def test_tokens_need_their_tokenizer_and_sentences_where_a_task_wants_them():
    with pytest.raises(ConfigError, match=r"data=nanogpt holds tokens, and no text to train a tokenizer on; .*tokenizer=pretrained"):
        compose("data=nanogpt", "data.path=x", "steps=1")
    with pytest.raises(ConfigError, match=r"task=mlm_nsp needs sentences, and data=nanogpt has none"):
        compose("data=nanogpt", "data.path=x", "steps=1", "model=bert_tiny", "task=mlm_nsp", "tokenizer=pretrained", "tokenizer.path=y")
