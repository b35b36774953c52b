"""Tokenizers: trained, pretrained, not found."""

from __future__ import annotations

import numpy as np
import pytest

from tests.data.corpora import decoded, prepared, text_source
from trainer.choices import ConfigError
from trainer.data.tokenizers import Pretrained, Train
from trainer.data.vocabularies import special_tokens, train_tokenizer
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


def test_byte_level_bpe_knows_word_starts():
    """The space before a word is written Ġ, which is a letter to Python; punctuation is a word, and a byte of a character none."""
    text = "Line 12: Ünïcode 字 and more,\nyet more"
    tokenizer = train_tokenizer("bpe", 300, False, True, lambda: iter([text]))
    starts = special_tokens(tokenizer, sentences=True).starts_word
    ids = tokenizer(text, add_special_tokens=False).input_ids
    words = "".join(
        f"|{token}" if starts[number] else token for token, number in zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True)
    )
    assert words == "Line|Ġ12|:|ĠÃľnÃ¯code|ĠåŃĹ|Ġand|Ġmore|,|Ċyet|Ġmore"


def test_pretrained_from_a_folder(lines, data_folder):
    first = prepared(text_source(lines), tokenizer=Train(vocab_size=300))
    again = prepared(text_source(lines), tokenizer=Pretrained(path=str(first.tokenizer_path)))
    assert again.tokens("train").read(0, 500).tolist() == first.tokens("train").read(0, 500).tolist()
    assert again.fingerprint != first.fingerprint
    tiny = prepared(text_source(lines), tokenizer=Pretrained(path=str(data_folder / "tiny_gpt2_random")))
    assert tiny.vocabulary.size > 0


def test_a_tokenizer_without_the_tokens_that_a_task_needs_is_refused(lines):
    bpe = prepared(text_source(lines), tokenizer=Train(vocab_size=300))
    with pytest.raises(ConfigError, match="no cls and no sep and no mask token"):
        prepared(text_source(lines), tokenizer=Pretrained(path=str(bpe.tokenizer_path)), task=MaskedLMWithNextSentence())


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


@pytest.mark.parametrize("given", [{"vocab_size": 10}, {"sample_bytes": 0}, {"lowercase": True, "kind": "bpe"}])
def test_tokenizer_fields_out_of_range_are_refused(given):
    from trainer.data.tokenizers import Kind

    with pytest.raises(ConfigError, match=r"tokenizer\."):
        Train(**{key: Kind(value) if key == "kind" else value for key, value in given.items()})
