"""Training tokenizers: byte-level BPE, WordPiece and Unigram. The same text gives the same tokenizer, to the byte, on every call."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from trainer.choices import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

Texts = Callable[[], Iterator[str]]

END_OF_TEXT = "<|endoftext|>"
UNKNOWN = "[UNK]"
# SentencePiece's sign for a space.
_SPACE = "▁"
# Its sums depend on the number of threads, so that is one number on every machine.
_THREADS = 16
# The score of bytes and of the unknown token, far below that of all pieces: a text that spells out their names is not taken for them.
_NEVER = -1000.0
# What spells out the name of a byte or the unknown token.
_SPELLING = frozenset(UNKNOWN) | frozenset("<0x123456789ABCDEF>")


def train_tokenizer(kind: str, size: int, lowercase: bool, sentences: bool, text: Texts) -> PreTrainedTokenizerFast:
    """A tokenizer of at most `size` tokens.

    kind: `bpe`, of bytes (Sennrich 2016, Radford 2019), `wordpiece` (Schuster 2012, Devlin 2018) or `unigram` (Kudo 2018).
    text: called once or twice for an iterator over it.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    names = {"pad_token": "[PAD]", "unk_token": UNKNOWN, "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    if not sentences:
        names = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
        names |= {} if kind == "bpe" else {"unk_token": UNKNOWN}
    special = list(dict.fromkeys(names.values()))
    if kind == "bpe":
        tokenizer = _train_bpe(size, special, text())
    else:
        train = _train_wordpiece if kind == "wordpiece" else _train_unigram
        tokenizer = train(size, special, lowercase, text)
    if sentences:
        pair = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=pair
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)


def _train_bpe(size: int, special: list[str], text: Iterator[str]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    return tokenizer


def _train_wordpiece(size: int, special: list[str], lowercase: bool, text: Texts) -> Tokenizer:
    from tokenizers import Tokenizer, models, trainers

    tokenizer = _bert(Tokenizer(models.WordPiece(unk_token=UNKNOWN)), lowercase)
    counts: Counter[str] = Counter()
    for piece in text():
        counts.update(tokenizer.normalizer.normalize_str(piece))
    # A quarter of the tokens is left for what is longer than a character, also in scripts of thousands of characters.
    common = _commonest(counts, size * 3 // 4)
    inside = [char for char in sorted(common) if len(tokenizer.pre_tokenizer.pre_tokenize_str(f"a{char}")) == 1]
    # The library numbers the characters inside words in the order of a hash table that differs by call, and breaks ties by number.
    # Given as special tokens they are numbered as listed; the tokens learned are then put into a tokenizer that has no such specials.
    inside = [f"##{char}" for char in inside][: max(0, size - len(special) - len(common))]
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        special_tokens=[*special, *inside],
        initial_alphabet=sorted(common),
        limit_alphabet=len(common),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text(), trainer)
    learned = _bert(Tokenizer(models.WordPiece(tokenizer.get_vocab(), unk_token=UNKNOWN)), lowercase)
    learned.add_special_tokens(special)
    return learned


def _commonest(counts: Counter[str], most: int) -> list[str]:
    """The characters that are seen most often, white space apart."""
    return sorted((char for char in counts if not char.isspace()), key=lambda char: (-counts[char], char))[:most]


def _bert(tokenizer: Tokenizer, lowercase: bool) -> Tokenizer:
    from tokenizers import decoders, normalizers, pre_tokenizers

    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _train_unigram(size: int, special: list[str], lowercase: bool, text: Texts) -> Tokenizer:
    """By SentencePiece: the trainer of the tokenizers library sums in the order of a hash table, and another vocabulary comes of it.

    What has no piece of its own is written in bytes, line ends always, so every text comes back as it was.
    """
    from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

    others = [token for token in special if token != UNKNOWN]
    counts: Counter[str] = Counter()
    for line in _lines(text, lowercase, {}):
        counts.update(line)
    if not counts:
        raise ConfigError("tokenizer: no text to train on; is all of it held out? Give more files, or a smaller data.held_out")
    alphabet = _alphabet(counts, (size - 256 - len(special) - len(_SPELLING)) * 3 // 4)
    rare = dict.fromkeys(map(ord, counts.keys() - alphabet - {" "}), "\n")
    written = io.BytesIO()
    try:
        SentencePieceTrainer.train(
            sentence_iterator=_lines(text, lowercase, rare),
            model_writer=written,
            model_type="unigram",
            vocab_size=size - len(others),
            hard_vocab_limit=False,
            character_coverage=1.0,
            required_chars="".join(sorted(_SPELLING)),
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=1 << 20,
            num_threads=_THREADS,
            unk_piece=UNKNOWN,
            unk_id=0,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            minloglevel=2,
        )
    except (OSError, RuntimeError) as error:
        raise ConfigError(
            f"tokenizer: SentencePiece could not train {size} tokens on {counts.total():,} characters: {str(error).splitlines()[0]}; "
            "give more text, or another tokenizer.vocab_size"
        ) from error
    learned = SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [
        (learned.id_to_piece(number), _NEVER if learned.is_byte(number) or learned.is_unknown(number) else learned.get_score(number))
        for number in range(learned.get_piece_size())
    ]
    tokenizer = _unigram(pieces, lowercase)
    tokenizer.add_special_tokens(others)
    return tokenizer


def _alphabet(counts: Counter[str], most: int) -> set[str]:
    """The commonest characters, at most so many, without the last 0.05 % of the text, as SentencePiece has it."""
    alphabet, covered, enough = set(), 0, counts.total() * 0.9995
    for char in _commonest(counts, most):
        if covered >= enough:
            break
        alphabet.add(char)
        covered += counts[char]
    return alphabet


def _lines(text: Texts, lowercase: bool, rare: dict[int, str]) -> Iterator[str]:
    """Lines, which end at rare characters too: nothing is learned across them."""
    fold = _folding() if lowercase else None
    for piece in text():
        folded = fold.normalize_str(piece) if fold else piece
        yield from filter(None, folded.replace(_SPACE, " ").translate(rare).split("\n"))


def _folding():  # type: ignore[no-untyped-def]
    from tokenizers import normalizers

    return normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase(), normalizers.NFC()])


def _unigram(pieces: list[tuple[str, float]], lowercase: bool) -> Tokenizer:
    """What SentencePiece does with these pieces, without a space before the text, line by line."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    spaces = normalizers.Replace(" ", _SPACE)
    tokenizer.normalizer = normalizers.Sequence([_folding(), spaces]) if lowercase else spaces
    # A word comes with all the spaces before it, of which a run may be a piece: code is indented.
    words = Regex(rf"{_SPACE}*[^{_SPACE}\n]+|{_SPACE}+|\n")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(words, "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Replace(_SPACE, " ")])
    return tokenizer
