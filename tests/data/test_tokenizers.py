"""Tokenizers: trained, pretrained, not found."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.corpora import Settings, decoded, prepared, text_source
from trainer.choices import ConfigError
from trainer.data import pipeline, prepare
from trainer.data.subwords import train_tokenizer
from trainer.data.tokenizers import Kind, Pretrained, Train
from trainer.data.vocabularies import special_tokens
from trainer.tasks.mlm import MaskedLM
from trainer.tasks.mlm_nsp import MaskedLMWithNextSentence


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_text("".join(f"Line {number}: Ünïcode 字 and <|endoftext|>, [MASK] as text.\n" for number in range(300)))
    return path


def test_byte_level_bpe_gives_every_byte_back(lines):
    corpus = prepared(text_source(lines), tokenizer=Train(vocab_size=300))
    assert "".join(decoded(corpus, "train") + decoded(corpus, "eval")) == lines.read_text()
    assert corpus.vocabulary.size == 300 and corpus.vocabulary.eos == corpus.vocabulary.pad == corpus.special.bos


def test_special_tokens_written_in_a_text_are_text(lines):
    corpus = prepared(text_source(lines), tokenizer=Train(vocab_size=300))
    stream = corpus.tokens("train")
    ends = np.flatnonzero(stream.read(0, len(stream)) == corpus.special.eos)
    assert ends.tolist() == corpus.documents("train").tolist(), "only separators are separators"


def test_wordpiece_loads_with_transformers_and_knows_word_starts(lines):
    from transformers import AutoTokenizer

    corpus = prepared(text_source(lines), tokenizer=Train(vocab_size=300, lowercase=True), task=MaskedLMWithNextSentence())
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_path)
    ids = tokenizer("Line", "unicode").input_ids
    assert tokenizer.convert_ids_to_tokens(ids[:1]) == ["[CLS]"] and ids.count(corpus.special.sep) == 2
    starts = corpus.special.starts_word
    assert len(starts) == corpus.special.size == len(tokenizer)
    assert all(starts[number] != token.startswith("##") for token, number in tokenizer.get_vocab().items())
    assert tokenizer.tokenize("LINE") == tokenizer.tokenize("line")


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_tokens_of_running_text_know_word_starts(kind):
    """The space before a word is written Ġ, a letter to Python, or ▁; punctuation is a word, a Chinese character is."""
    text = "Line 12: Ünïcode 字 and more,\nyet more\n" * 9
    tokenizer = train_tokenizer(kind, 400, False, True, lambda: iter([text]))
    starts = special_tokens(tokenizer, sentences=True).starts_word
    ids = tokenizer("yet  more, Ün 春眠ñ字", add_special_tokens=False).input_ids
    words: list[list[int]] = []
    for token in ids:
        if starts[token] or not words:
            words.append([])
        words[-1].append(token)
    found = [tokenizer.decode(word).strip() for word in words]
    assert [word for word in found if word] == ["yet", "more", ",", "Ün", "春", "眠ñ", "字"]


def test_pretrained_from_a_folder(lines, data_folder):
    first = prepared(text_source(lines), tokenizer=Train(vocab_size=300))
    again = prepared(text_source(lines), tokenizer=Pretrained(path=str(first.tokenizer_path)))
    assert again.tokens("train").read(0, 500).tolist() == first.tokens("train").read(0, 500).tolist()
    assert again.fingerprint != first.fingerprint
    tiny = prepared(text_source(lines), tokenizer=Pretrained(path=str(data_folder / "tiny_gpt2_random")))
    assert tiny.vocabulary.size > 0


def test_b04_a_tokenizer_without_the_tokens_that_a_task_needs_is_refused(lines, data_folder, tmp_path):
    gpt2 = Pretrained(path=str(data_folder / "gpt2_bpe"))
    for task in (MaskedLM(), MaskedLMWithNextSentence()):
        with pytest.raises(ConfigError, match=r"no cls and no sep and no mask token, .*such as tokenizer=bert_uncased or tokenizer=train"):
            prepared(text_source(lines), tokenizer=gpt2, task=task)
    train_tokenizer("bpe", 300, False, True, lambda: iter(["text"])).backend_tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r'no eos token, .*tokenizer=gpt2 .*in its tokenizer_config\.json \("eos_token": "…"\)'):
        prepared(text_source(lines), tokenizer=Pretrained(path=str(tmp_path)))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "[SEP]"}')
    mended = prepared(text_source(lines), tokenizer=Pretrained(path=str(tmp_path / "tokenizer.json")))
    assert mended.special.eos == mended.special.bos == 3 and mended.special.size == 261


def test_b13_tokenizer_not_found_tells_where_and_the_offline_way(lines, tmp_path):
    with pytest.raises(
        ConfigError, match=r"tokenizer\.path: 'nobody/nothing' .*huggingface\.co.*cache.*hf download nobody/nothing --local-dir"
    ):
        prepared(text_source(lines), tokenizer=Pretrained(path="nobody/nothing"))
    (tmp_path / "notes.md").write_text("no tokenizer")
    with pytest.raises(ConfigError, match=r"holds no tokenizer .*notes\.md"):
        prepared(text_source(lines), tokenizer=Pretrained(path=str(tmp_path)))
    with pytest.raises(ConfigError, match="no folder"):
        prepared(text_source(lines), tokenizer=Pretrained(path=str(tmp_path / "absent")))


@pytest.mark.parametrize(
    "given", [{"vocab_size": 10}, {"vocab_size": 399, "kind": "unigram"}, {"sample_bytes": 0}, {"lowercase": True, "kind": "bpe"}]
)
def test_tokenizer_fields_out_of_range_are_refused(given):
    with pytest.raises(ConfigError, match=r"tokenizer\."):
        Train(**{key: Kind(value) if key == "kind" else value for key, value in given.items()})


# Trains one of each kind on the text of its input, and prints what they are.
DIGESTS = """
import hashlib, sys
from trainer.data.subwords import train_tokenizer
text = sys.stdin.read()
for kind in ("bpe", "wordpiece", "unigram"):
    made = train_tokenizer(kind, 900, False, True, lambda: iter([text[:9000], text[9000:]])).backend_tokenizer.to_str()
    print(hashlib.sha256(made.encode()).hexdigest())
"""


def test_the_same_text_gives_the_same_tokenizer_to_the_byte(data_folder):
    """On every call, in another process and on another number of threads."""
    names = ("zh_poetry/poet.tang.0.json", "tinyshakespeare/input.txt")
    text = "".join((data_folder / name).read_text()[:20_000] for name in names)
    environment = {**os.environ, "RAYON_NUM_THREADS": "1"}
    there = subprocess.run([sys.executable, "-c", DIGESTS], input=text, env=environment, capture_output=True, text=True, check=True)
    here = []
    for kind in ("bpe", "wordpiece", "unigram"):
        made = train_tokenizer(kind, 900, False, True, lambda: iter([text[:9000], text[9000:]])).backend_tokenizer.to_str()
        here.append(hashlib.sha256(made.encode()).hexdigest())
    assert len(text) > 30_000 and len(set(here)) == 3 and there.stdout.split() == here


@pytest.fixture(scope="module")
def unigram():
    """Trained on code: a tokenizer as it loads, and the same without a name for special tokens."""
    from tokenizers import Tokenizer

    text = "".join(f"def line_{number}(value):\n    if value:\n        return [{number}, 'é', value]\n\n" for number in range(200))
    made = train_tokenizer("unigram", 500, False, False, lambda: iter([text]))
    bare = Tokenizer.from_str(made.backend_tokenizer.to_str())
    bare.encode_special_tokens = True
    return made, bare


@given(text=st.text(st.one_of(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), st.sampled_from("aef (\n\t[UNK]<0x>"))))
@settings(max_examples=200, deadline=None)
def test_unigram_gives_every_text_back(unigram, text):
    made, bare = unigram
    ids = bare.encode(text, add_special_tokens=False).ids
    assert bare.decode(ids, skip_special_tokens=False) == text
    assert not {made.eos_token_id, made.unk_token_id} & set(ids)


def test_unigram_takes_no_text_for_what_it_spells_and_indentation_as_one_piece(unigram):
    made, bare = unigram
    for text in ("<0x0A>", "[UNK]", "<|endoftext|>", "x<0x41>[UNK]"):
        ids = bare.encode(text, add_special_tokens=False).ids
        assert bare.decode(ids, skip_special_tokens=False) == text and len(ids) > 4
    assert bare.encode("        return", add_special_tokens=False).tokens[0].startswith("▁▁▁▁")
    assert len(made) <= 500


def test_unigram_as_a_user_would_have_it(lines):
    from transformers import AutoTokenizer

    chosen = Train(vocab_size=400, kind=Kind.unigram)
    corpus = prepared(text_source(lines), tokenizer=chosen)
    assert "".join(decoded(corpus, "train") + decoded(corpus, "eval")) == lines.read_text()
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_path)
    assert tokenizer.decode(tokenizer("Line 字").input_ids) == "Line 字" and tokenizer.eos_token_id == corpus.special.eos
    folded = prepared(text_source(lines), tokenizer=Train(vocab_size=400, kind=Kind.unigram, lowercase=True), task=MaskedLM())
    tokenizer = AutoTokenizer.from_pretrained(folded.tokenizer_path)
    assert tokenizer("LÍNE").input_ids == tokenizer("line").input_ids
    assert tokenizer.convert_ids_to_tokens(tokenizer("Line", "and").input_ids).count("[SEP]") == 2
    assert folded.meta["splits"]["eval"]["unknown"] == 0


def test_all_of_the_text_is_sampled_where_no_limit_is_given(tmp_path, monkeypatch):
    """Words that stand in one part of the text each: a small sample has few of them."""
    from transformers import AutoTokenizer

    monkeypatch.setattr(pipeline, "UNIT_BYTES", 4096)
    words = [f"{left}{right}" * 4 for left in "qzxj" for right in "abcd"]
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{word} {word} {number}\n" for word in words for number in range(200)))
    found = {}
    for size in (5000, None):
        corpus = prepared(text_source(path, document="line"), tokenizer=Train(vocab_size=500, sample_bytes=size))
        tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_path)
        found[size] = [len(tokenizer.tokenize(word)) for word in words]
    assert found[None] == [1] * len(words) and sum(length > 1 for length in found[5000]) > len(words) / 2


def test_what_an_older_format_prepared_is_not_read(lines, monkeypatch):
    """Which tokens begin a word, and which is unknown, were not always told as they are now."""
    now = prepared(text_source(lines), tokenizer=Train(vocab_size=310))
    monkeypatch.setattr(prepare, "FORMAT", prepare.FORMAT - 1)
    before = prepared(text_source(lines), tokenizer=Train(vocab_size=310))
    assert before.path != now.path and before.rows_path != now.rows_path and before.fingerprint != now.fingerprint


def test_text_that_the_tokenizer_cannot_write_is_warned_of(tmp_path, data_folder, capsys):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"{number} 白日依山盡，黃河入海流。欲窮千里目，更上一層樓。\n" for number in range(200)))
    english = Pretrained(path=str(data_folder / "vocabs" / "google_uncased_en_vocab.txt"))
    for _ in range(2):
        prepare.prepare(Settings(text_source(path, document="line"), english, MaskedLM()), progress=True)
        said = " ".join(capsys.readouterr().out.split())
        assert "% of the held-out tokens are unknown to the tokenizer: that text is lost" in said
    prepare.prepare(Settings(text_source(path, document="line"), Train(vocab_size=300), MaskedLM()), progress=True)
    assert "unknown" not in capsys.readouterr().out
