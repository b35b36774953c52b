"""Encoder–decoder models: spans by hash, targets by the row table, parity with each document alone, the whole way on real text."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import loops
from tests.models.test_families import check_parity
from trainer.bench.syncs import HostSyncs
from trainer.choices import ConfigError
from trainer.data.corpus import open_corpus
from trainer.data.rows import Rows, RowWriter
from trainer.data.spans import Spans, pack_spans
from trainer.data.vocabularies import SENTINEL
from trainer.generation import open_writer
from trainer.mfu import work_of
from trainer.models import Vocabulary
from trainer.models.heads import DenoisingModule
from trainer.models.t5 import T5
from trainer.run import RunDir, load_frozen
from trainer.strategies.sharded import blocks
from trainer.tasks import Batch, Pick
from trainer.verbs.evaluate import held_out

READ, WRITTEN = (7, 3, 7, 12, 1), (4, 6, 2, 5, 3)


def t5():
    torch.manual_seed(0)
    model = T5(layers=2, hidden=32, heads=4, head_size=8).build("denoising", Vocabulary(101, pad=0, eos=1), 64)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def bart():
    from transformers import BartConfig, BartForConditionalGeneration

    torch.manual_seed(0)
    sizes = {"d_model": 32, "max_position_embeddings": 64, "init_std": 0.2, "dropout": 0.0}
    sizes |= {f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in
              (("layers", 2), ("attention_heads", 4), ("ffn_dim", 64))}  # fmt: skip
    return BartForConditionalGeneration(BartConfig(vocab_size=128, **sizes)).eval()


def batch_of(draw):
    read, written = (torch.randint(3, 101, (1, sum(lengths)), generator=draw) for lengths in (READ, WRITTEN))
    inputs = {"input_ids": read, "decoder_ids": written, "denoising_targets": written[0]}
    return Batch(inputs, READ, {"denoising": sum(WRITTEN)}, sum(READ), decoded=WRITTEN)


@pytest.mark.parametrize("made", [t5, bart])
def test_c14_padded_pairs_are_each_document_alone_and_nothing_waits(made):
    """transformers shifts the labels itself here; its own attention, no padding."""
    model = made()
    batch = batch_of(torch.Generator().manual_seed(1))
    reads, writes = batch.inputs["input_ids"].split(READ, dim=1), batch.inputs["decoder_ids"].split(WRITTEN, dim=1)
    theirs = [model(input_ids=read, labels=written) for read, written in zip(reads, writes, strict=True)]
    expected = torch.cat([each.logits[0] for each in theirs])
    scale = float(expected.detach().abs().max())
    module = DenoisingModule(model, 101)
    assert "padded" in module.notice
    own = sum(each.loss.item() * length for each, length in zip(theirs, WRITTEN, strict=True))
    assert DenoisingModule(model, expected.shape[1])(batch)["denoising"].item() == pytest.approx(own, rel=1e-5)
    assert torch.allclose(module.layout.logits(model, batch, None), expected, rtol=1e-5, atol=1e-5 * scale)
    check_parity(model, module, batch, "denoising", expected, batch.inputs["denoising_targets"])
    with HostSyncs() as counted:
        module.train()(batch)["denoising"].backward()
    assert counted.total == 0, counted.counts


def test_a_filler_has_no_loss_and_finite_zero_gradients():
    model, batch = t5(), batch_of(torch.Generator().manual_seed(1))
    batch.inputs |= {"denoising_index": torch.empty(0, dtype=torch.long), "denoising_targets": torch.empty(0, dtype=torch.long)}
    loss = DenoisingModule(model, 101).train()(batch)["denoising"]
    loss.backward()
    assert loss.item() == 0
    assert all(parameter.grad is not None and parameter.grad.abs().max() == 0 for parameter in model.parameters())


@pytest.mark.parametrize("made", [t5, bart])
def test_model_flops_of_both_sides_are_what_torch_counts(made):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = made()
    read, written = torch.randint(3, 101, (3, 11)), torch.randint(3, 101, (3, 5))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(input_ids=read, decoder_input_ids=written, use_cache=False).logits.sum().backward()
    work = work_of(model, ["denoising"])
    assert work is not None and counter.get_total_flops() == work.flops(33, {"denoising": 15}, (11,) * 3, (5,) * 3)


def test_units_of_a_sharded_model_are_the_blocks_of_both_sides():
    model = t5()
    assert blocks(model) == [*model.encoder.block, *model.decoder.block]


@settings(deadline=None)
@given(length=st.integers(1, 400), rate=st.floats(0.05, 0.6), mean=st.floats(1.0, 8.0), key=st.integers(0, 1 << 40))
def test_spans_are_as_many_as_the_length_says_and_lie_apart(length, rate, mean, key):
    spans = Spans(rate, mean)
    (hidden,), (count,) = spans.counts(np.array([length]))
    kept, covered = spans.draw(key, length)
    assert len(kept) == count + 1 and len(covered) == count and kept.sum() == length - hidden and covered.sum() == hidden
    assert covered.min() >= 1 and kept.min() >= 0 and (kept[1:-1] >= 1).all()
    assert [part.tolist() for part in spans.draw(key, length)] == [kept.tolist(), covered.tolist()]
    assert spans.sizes(np.array([length]))[0][0] == kept.sum() + count + 1


@given(texts=st.lists(st.integers(1, 90), min_size=1, max_size=60), capacity=st.integers(4, 40), rate=st.sampled_from([0.15, 0.5]))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_hold_every_token_once_and_the_encoder_reads_no_more_than_fits(tmp_path_factory, texts, capacity, rate):
    documents, spans = np.concatenate([[0], np.cumsum([size + 1 for size in texts])]), Spans(rate, 3.0)
    writer = RowWriter(tmp_path_factory.mktemp("rows"))
    pack_spans(documents, capacity, spans, writer)
    writer.close()
    rows = Rows(writer.path)
    seen = []
    for row in range(len(rows)):
        pieces = rows.pieces(row)
        read, written = spans.sizes(pieces[:, 1])
        assert rows.lengths[row] == read.sum() <= capacity and rows.targets["denoising"][row] == written.sum()
        seen += [token for start, length in pieces.tolist() for token in range(start, start + length)]
    assert sorted(seen) == sorted(set(range(documents[-1])) - set(documents.tolist())), "all but the separators"


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return loops.write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, texts):
    """A small T5 that went the whole way on real text."""
    words = ("model=t5_tiny", "model.hidden=48", "model.heads=2", "model.layers=1", "task=denoising", "steps=40", "optim.lr=1e-2")
    path = loops.ready(tmp_path_factory.mktemp("run"), texts, *words, sizes=())
    training = loops.training(loops.single(), path)
    training.loop()
    training.finish()
    return path


def test_c15_what_is_hidden_is_a_function_of_the_sample_and_the_pass(trained):
    config, placement = load_frozen(trained / "config.yaml"), RunDir(trained).placement
    corpus = open_corpus(placement["corpus"], placement["rows"], config)
    split, sentinels = corpus.split("train"), set(corpus.special.sentinels)
    assert len(sentinels) == 100
    differ = 0
    for row in range(len(split.rows)):
        batch, again, later = (config.task.collate(split, [Pick(row, epoch)]) for epoch in (0, 0, 1))
        assert all(torch.equal(batch.inputs[name], again.inputs[name]) for name in batch.inputs)
        assert batch.targets["denoising"] == split.rows.targets["denoising"][row] == sum(batch.decoded)
        assert batch.tokens == split.rows.lengths[row] == sum(batch.lengths)
        differ += not torch.equal(batch.inputs["input_ids"], later.inputs["input_ids"])
        reads, writes = batch.inputs["input_ids"][0].split(batch.lengths), batch.inputs["decoder_ids"][0].split(batch.decoded)
        for (start, length), read, written in zip(split.rows.pieces(row).tolist(), reads, writes, strict=True):
            assert restored(read.tolist(), written.tolist(), sentinels) == split.tokens.read(start, length).tolist()
    assert differ > 0.9 * len(split.rows)


def restored(read, written, sentinels):
    """The text, from what the encoder reads and the decoder writes; each without its end."""
    behind: dict[int, list[int]] = {}
    for token in written[:-1]:
        if token in sentinels:
            behind[token] = current = []
        else:
            current.append(token)
    return [token for place in read[:-1] for token in behind.get(place, [place])]


def test_t5_trains_is_exported_evaluated_and_infills(trained):
    losses = loops.losses(trained)
    assert losses[-1] < 0.7 * losses[0]
    recorded, anew = RunDir(trained).summary, held_out(RunDir(trained), "cpu")
    assert anew["eval_loss"] == pytest.approx(recorded["eval_loss"], rel=1e-4)
    assert anew["denoising_accuracy"] == pytest.approx(recorded["denoising_accuracy"])
    writer = open_writer(trained / "model", 32)
    text = writer.write("alpha <extra_id_0> beta <extra_id_1> gamma", 12, temperature=0)
    assert text.startswith("alpha") and text.endswith("gamma") and not SENTINEL.search(text)
    with pytest.raises(ConfigError, match="has no <extra_id_0>"):
        writer.write("alpha")
    assert (trained / "sample.txt").exists() or "→" in writer.restore(writer.tokenizer("alpha beta gamma delta")["input_ids"])


def test_a_directory_without_sentinels_is_given_rows_for_them(tmp_path, texts):
    config = bart().config
    config.vocab_size = 320
    type(bart())(config).save_pretrained(tmp_path / "hub")
    words = (
        "model=pretrained",
        f"model.path={tmp_path / 'hub'}",
        "task=denoising",
        "optim.lr=1e-2",
        "steps=12",
        "tokenizer.vocab_size=310",
    )
    path = loops.ready(tmp_path, texts, *words, sizes=())
    training = loops.training(loops.single(), path)
    training.loop()
    training.finish()
    assert loops.losses(path)[-1] < 0.9 * loops.losses(path)[0]
    assert held_out(RunDir(path), "cpu")["eval_loss"] == pytest.approx(RunDir(path).summary["eval_loss"], rel=1e-4)
    assert len(open_writer(path / "model", 32).model.get_input_embeddings().weight) > 320


def test_more_spans_than_sentinels_are_refused(tmp_path, texts):
    with pytest.raises(ConfigError, match=r"sequence_length: 4096 has up to .* hidden spans, but the tokenizer has 100 sentinels"):
        loops.ready(tmp_path, texts, "model=t5_tiny", "task=denoising", "sequence_length=4096", sizes=())
