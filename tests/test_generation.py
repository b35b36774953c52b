"""What a model in `model/` writes: against its own logits, within what it has learned to see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.choices import ConfigError
from trainer.generation import Writer, open_writer

TEXT = ["the cat sat on the mat", "a dog ran to the cat", "def f(x): return x"]


def _causal(path: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=280, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    )
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token=end, eos_token=end, pad_token=end).save_pretrained(path)
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=words.get_vocab_size(), n_positions=32, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(path)
    return path


def _masked(path: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertForPreTraining, PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    words.normalizer, words.pre_tokenizer, words.decoder = (
        normalizers.BertNormalizer(),
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
    )
    words.train_from_iterator(TEXT, trainers.WordPieceTrainer(vocab_size=80, special_tokens=special))
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names: dict[str, Any] = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=words.get_vocab_size(), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
                        max_position_embeddings=32)  # fmt: skip
    BertForPreTraining(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    return open_writer(_causal(tmp_path_factory.mktemp("causal")))


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    return open_writer(_masked(tmp_path_factory.mktemp("masked")))


def test_greedy_writing_is_the_likeliest_token_each_time_from_the_start_of_a_document(causal: Writer) -> None:
    prompt = "the cat"
    ids = [0, *causal.tokenizer(prompt)["input_ids"]]
    start = len(ids)
    with torch.no_grad():
        for _ in range(6):
            ids.append(int(causal.model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert causal.write(prompt, 6, temperature=0) == prompt + causal.tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_sampling_repeats_by_its_seed(causal: Writer) -> None:
    texts = [causal.write("a dog", 12, seed=seed) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("a dog") for text in texts)
    assert causal.write("", 5, seed=1), "an empty prompt is the start of a document"


def test_nothing_beyond_the_positions_that_were_learned(causal: Writer) -> None:
    assert causal.limit == 32
    short = Writer(causal.model, causal.tokenizer, 10)
    seen: list[int] = []
    positions: Any = causal.model.transformer.wpe
    hook = positions.register_forward_hook(lambda module, inputs, output: seen.append(int(inputs[0].max())))
    short.write("the cat", 500, temperature=0)
    hook.remove()
    assert 5 < max(seen) < 10, "it goes on to the last position that was learned, and not beyond"
    with pytest.raises(ConfigError, match=r"prompt: .* tokens, but the model has learned to see 10"):
        short.write("the cat sat on the mat " * 5)


def test_masks_are_filled_with_the_likeliest_tokens(masked: Writer) -> None:
    assert masked.fills
    first, second = masked.fill("the [MASK] sat on [MASK]")
    ids = torch.tensor([masked.tokenizer("the [MASK] sat on [MASK]")["input_ids"]])
    with torch.no_grad():
        shares = masked.model(ids).prediction_logits[0].softmax(-1)
    places = (ids[0] == masked.tokenizer.mask_token_id).nonzero()[:, 0].tolist()
    for guesses, place in zip((first, second), places, strict=True):
        assert len(guesses) == 5
        best = shares[place].topk(5)
        assert [guess.probability for guess in guesses] == pytest.approx(best.values.tolist())
        assert [guess.token for guess in guesses] == [masked.tokenizer.decode([token]) for token in best.indices.tolist()]
    with pytest.raises(ConfigError, match=r"has no \[MASK\]"):
        masked.fill("the cat")
    restored = masked.restore(masked.tokenizer(" ".join(TEXT[:2]), add_special_tokens=False)["input_ids"])
    assert "[MASK]" in restored.split("→")[0] and "[MASK]" not in restored.split("→")[1]


def test_a_causal_model_does_not_fill(causal: Writer) -> None:
    assert not causal.fills
