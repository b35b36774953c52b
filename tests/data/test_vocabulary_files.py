"""Bare vocabulary files, in folders or named: encoded as transformers' own tokenizers do; what is ambiguous or does not fit is refused."""

from __future__ import annotations

import json
import shutil
import sysconfig
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.corpora import decoded, prepared, text_source
from trainer.choices import ConfigError
from trainer.composition import compose
from trainer.data import tokenizing
from trainer.data.sources import Text
from trainer.data.subwords import train_tokenizer
from trainer.data.tokenizer_files import locate
from trainer.data.tokenizers import Pretrained
from trainer.tasks.mlm import MaskedLM

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ODD = (
    "\n\n  \t odd\u00a0white\u3000space\u200b \r\n 😀👩‍👩‍👧 naïve ＡＢＣ ㎞ ﬁ İstanbul ß ǅ 한국어 にほんご がぎ \u0301x Ω १२३ \x7f x²\n"
    "don't you'll 1,000.50 https://example.org/a_b?c=d <html> [unused1] ##ing ---- … “quoted”\n"
)


@pytest.fixture(scope="module")
def text(data_folder):
    """English, Chinese, code, emoji, white space of all kinds: longer than the pieces that are tokenized at once."""
    library = Path(sysconfig.get_path("stdlib"))
    files = (data_folder / "books" / "moby_dick.md", data_folder / "zh_poetry" / "ci.song.0.json", library / "argparse.py")
    return ODD + "".join(path.read_text()[:12_000] + ODD for path in files)


@pytest.fixture(scope="module")
def source(text, tmp_path_factory):
    """The text as the one document for training."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "a.txt").write_bytes(text.encode())
    (folder / "b.txt").write_text("Held out.")
    return Text(train=str(folder / "a.txt"), eval=str(folder / "b.txt"), processes=1)


def corpus_of(source, path, **options):
    return prepared(source, tokenizer=Pretrained(path=str(path), **options))


def tokens_of(corpus):
    """The tokens of the one training document, without the separators around it."""
    stream = corpus.tokens("train")
    return stream.read(1, len(stream) - 2).tolist()


@pytest.mark.parametrize("name", ["uncased_en", "cased_en", "zh"])
def test_a_vocab_txt_is_encoded_as_transformers_does(name, text, source, data_folder, tmp_path):
    """By BertTokenizer and by the one in Python, both told what the tokens show here. [SEP] ends a document."""
    from transformers import BertTokenizer
    from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

    file = data_folder / "vocabs" / f"google_{name}_vocab.txt"
    corpus = corpus_of(source, file)
    shutil.copy(file, tmp_path / "vocab.txt")
    lowercase = name != "cased_en"
    fast = BertTokenizer.from_pretrained(tmp_path, do_lower_case=lowercase)
    slow = BertTokenizerLegacy(str(file), do_lower_case=lowercase)
    found = tokens_of(corpus)
    assert found == fast(text, add_special_tokens=False)["input_ids"] == slow(text, add_special_tokens=False)["input_ids"]
    assert corpus.special.size == len(fast) and corpus.special.eos == fast.sep_token_id and corpus.special.unk == 100
    # A folder with that one file, and a model beside it that does not say what becomes of case: the same.
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert locate(str(tmp_path)).options() == {"lowercase": lowercase}
    other = tokens_of(corpus_of(source, file, lowercase=not lowercase))
    assert (
        other == BertTokenizer.from_pretrained(tmp_path, do_lower_case=not lowercase)(text, add_special_tokens=False)["input_ids"] != found
    )


def test_encoder_json_and_vocab_bpe_are_encoded_as_transformers_does(text, source, data_folder, tmp_path):
    from transformers import AutoTokenizer, GPT2Tokenizer

    folder = data_folder / "gpt2_bpe"
    shutil.copy(folder / "encoder.json", tmp_path / "gpt2-vocab.json")
    shutil.copy(folder / "vocab.bpe", tmp_path / "gpt2-merges.txt")
    theirs = GPT2Tokenizer(vocab=str(tmp_path / "gpt2-vocab.json"), merges=str(tmp_path / "gpt2-merges.txt"))
    assert theirs("Hello world")["input_ids"] == [15496, 995], "OpenAI's ids"
    corpus = corpus_of(source, folder)
    assert tokens_of(corpus) == theirs(text)["input_ids"]
    assert decoded(corpus, "train") == [text] and corpus.special.size == 50_257 and corpus.special.eos == 50_256
    for named in (folder / "encoder.json", folder / "vocab.bpe", tmp_path / "gpt2-vocab.json", tmp_path / "gpt2-merges.txt"):
        assert locate(str(named)).load()(ODD)["input_ids"] == theirs(ODD)["input_ids"]
    # What a run leaves with its model is the same tokenizer.
    assert AutoTokenizer.from_pretrained(corpus.tokenizer_path)(text)["input_ids"] == theirs(text)["input_ids"]


WORDS = ("a", "Ünï", "don't", "12", "字春", "(x)", "word", "--", "😀", "字，春", "x\u00a0y")
GAPS = (" ", "\n", "\n\n", "  ", " \n\n", "\n    ", "\n \n")


@pytest.fixture(scope="module")
def backends(data_folder):
    """GPT-2's tokenizer, BERT's, and a Unigram."""
    text = [f"a word {number} and a (x) don't\n    字春 word" for number in range(50)]
    named = [locate(str(data_folder / name)).load() for name in ("gpt2_bpe", "vocabs/google_zh_vocab.txt")]
    return [loaded.backend_tokenizer for loaded in (*named, train_tokenizer("unigram", 420, False, False, lambda: iter(text)))]


@given(parts=st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(GAPS)), min_size=20, max_size=80))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_text_is_cut_where_its_tokens_stay_the_same(backends, monkeypatch, parts):
    monkeypatch.setattr(tokenizing, "_PIECE_BYTES", 64)
    text = "".join(word + gap for word, gap in parts)
    pieces = list(tokenizing.cut(text.encode()))
    assert "".join(pieces) == text and max(len(piece.encode()) for piece in pieces) <= 64
    for backend in backends:
        apart = [token for piece in pieces for token in backend.encode(piece, add_special_tokens=False).ids]
        assert apart == backend.encode(text, add_special_tokens=False).ids, pieces


def test_files_of_the_tokenizers_library_with_robertas_special_tokens(lines, tmp_path):
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizer

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(lines, vocab_size=400, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False)
    made.save_model(str(tmp_path))
    loaded = locate(str(tmp_path)).load()
    theirs = RobertaTokenizer(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    assert len(loaded) == made.get_vocab_size() and loaded(ODD)["input_ids"] == theirs(ODD)["input_ids"]
    (tmp_path / "a.txt").write_text("\n".join(lines))
    corpus = prepared(text_source(tmp_path / "a.txt", document="line"), tokenizer=Pretrained(path=str(tmp_path)), task=MaskedLM())
    assert [corpus.special.cls, corpus.special.sep, corpus.special.mask, corpus.special.pad] == [0, 2, 4, 1]


@pytest.fixture
def lines():
    return [f"Line {number} of a text, with words in it." for number in range(200)]


def test_the_chinese_choice_takes_a_vocab_txt(data_folder):
    file = data_folder / "vocabs" / "google_zh_vocab.txt"
    chosen = compose("steps=1", "task=mlm", "model=bert_tiny", "tokenizer=bert_chinese", f"tokenizer.path={file}").tokenizer
    assert isinstance(chosen, Pretrained)
    loaded = locate(chosen.path, chosen.revision, chosen.lowercase).load()
    poem = "白日依山盡，黃河入海流。"
    ids = loaded(poem)["input_ids"]
    assert loaded.convert_ids_to_tokens(ids[1:-1]) == list(poem) and loaded.decode(ids, skip_special_tokens=True).replace(" ", "") == poem


def write(folder, name, words):
    (folder / name).write_text("\n".join(words) + "\n\n", encoding="utf-8")
    return str(folder / name)


def test_what_becomes_of_case_is_asked_where_the_tokens_do_not_show_it(tmp_path):
    words = [f"{left}{right}" for left in "abcdefghijklmnop" for right in "abcdefghijklmnop"]
    mixed = write(tmp_path, "mixed-vocab.txt", [*BERT, *words, "Ab"])
    with pytest.raises(
        ConfigError,
        match=r"tokenizer\.lowercase: not given, and .*mixed-vocab\.txt does not show it: 1 of its 257 words have capitals \(Ab\); "
        "give tokenizer.lowercase=true",
    ):
        locate(mixed).options()
    assert locate(mixed, lowercase=True).load()("AB")["input_ids"] == [2, 6, 3]
    with pytest.raises(ConfigError, match=r"no word has letters; give tokenizer\.lowercase"):
        locate(write(tmp_path, "signs.txt", [*BERT, "春", "が", "1", "[unused1]", "<S>"])).load()
    assert locate(write(tmp_path, "cased.txt", [*BERT, *words, "A", "B", "C"])).options() == {"lowercase": False}


def test_b13_files_that_are_no_vocabulary_or_one_of_several_are_told(tmp_path, data_folder):
    vocabs = data_folder / "vocabs"
    with pytest.raises(
        ConfigError, match=r"holds 3 vocabularies: google_cased_en_vocab\.txt, .*; name the file of one, such as .*cased_en_vocab"
    ):
        locate(str(vocabs))
    with pytest.raises(ConfigError, match=r"no file; did you mean 'google_zh_vocab\.txt'"):
        locate(str(vocabs / "google_zh_vocabs.txt"))
    with pytest.raises(ConfigError, match=r"LICENSE is a file, but not vocab\.txt \(BERT\), or encoder\.json with vocab\.bpe"):
        locate(str(data_folder / "zh_poetry" / "LICENSE"))
    with pytest.raises(ConfigError, match=r"poem\.txt has no line \[PAD\] and none \[UNK\] .*; give another file"):
        locate(write(tmp_path, "poem.txt", ["a", "b"])).load()
    with pytest.raises(ConfigError, match=r"no line \[MASK\] among its 5, as BERT's vocab\.txt has; .*in the place of lines \[unused…\]"):
        locate(write(tmp_path, "few.txt", [*BERT[:4], "a"])).load()
    (tmp_path / "bytes.txt").write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(ConfigError, match=r"bytes\.txt is not UTF-8 at byte 6"):
        locate(str(tmp_path / "bytes.txt")).load()
    shutil.copy(data_folder / "gpt2_bpe" / "encoder.json", tmp_path)
    with pytest.raises(ConfigError, match=r"encoder\.json is one of two files, and the other is not beside it"):
        locate(str(tmp_path / "encoder.json"))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nĠ nowhereatall\n")
    with pytest.raises(ConfigError, match="do not fit together"):
        locate(str(tmp_path)).load()
    (tmp_path / "encoder.json").write_text(json.dumps({"a": 0, "b": 1}))
    with pytest.raises(ConfigError, match=r"has neither <\|endoftext\|>, as GPT-2's has, nor <s> .*save_pretrained"):
        locate(str(tmp_path)).load()


def test_options_that_a_tokenizer_has_no_use_for_are_refused(data_folder):
    with pytest.raises(ConfigError, match=r"tokenizer\.lowercase: true; that is for BERT's bare vocab\.txt"):
        locate(str(data_folder / "gpt2_bpe"), lowercase=True)
    with pytest.raises(ConfigError, match=r"tokenizer\.revision: main; .*tiny_gpt2_random is here"):
        locate(str(data_folder / "tiny_gpt2_random"), revision="main")


def test_of_a_hub_repository_the_revision_counts_and_none_of_its_code(tmp_path, monkeypatch, data_folder):
    """Offline, from the hub's own cache: `main` and an older commit with other special tokens, and code that would leave a mark."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--words"
    commits = {"main": "b" * 40, "old": "a" * 40}
    for name, commit in commits.items():
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / name).write_text(commit)
        shutil.copytree(data_folder / "tiny_gpt2_random", repository / "snapshots" / commit, copy_function=shutil.copyfile)
        snapshot = repository / "snapshots" / commit
        snapshot.chmod(0o755)
        mark = tmp_path / "ran"
        (snapshot / "code.py").write_text(f"open({str(mark)!r}, 'w')\nfrom transformers import GPT2TokenizerFast as Words\n")
        said = {"tokenizer_class": "Words", "auto_map": {"AutoTokenizer": ["code.Words", "code.Words"]}} if name == "old" else {}
        settings = json.loads((snapshot / "tokenizer_config.json").read_text()) | said
        (snapshot / "tokenizer_config.json").write_text(json.dumps(settings))
    newest, older = (Pretrained(path="someone/words", revision=revision) for revision in (None, commits["old"]))
    assert newest.decides("bpe", "", False) != older.decides("bpe", "", False)
    assert len(locate("someone/words", "main").load()) > 0
    with pytest.raises(ConfigError, match=r"someone--words.*cannot load it"):
        locate("someone/words", commits["old"]).load()
    assert not mark.exists()
    with pytest.raises(ConfigError, match=r"'someone/words' .*was not found at revision cccc on .*cache .*hf download"):
        locate("someone/words", "cccc")
