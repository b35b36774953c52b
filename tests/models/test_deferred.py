"""Models without values: what their first values are, and those that a directory holds, box by box."""

from __future__ import annotations

import json

import pytest
import torch

from tests import tiny
from tests.distributed import run_distributed
from tests.models.test_pretrained import config_of
from trainer.checkpoint.boxes import Box, whole
from trainer.choices import ConfigError, find, load_choices
from trainer.models import Vocabulary
from trainer.models.deferred import First, deferred, materialise, real_copy
from trainer.models.heads import CausalModule, MaskedModule
from trainer.models.pretrained import Pretrained
from trainer.models.stored import files_in

CPU = torch.device("cpu")
VOCABULARY = Vocabulary(128, bos=0, eos=0, pad=0)
FAMILIES = [("gpt2", "causal"), ("bert", "pretraining"), ("llama", "causal"), ("roberta", "masked"), ("modernbert", "masked"),
            ("t5", "denoising")]  # fmt: skip


def builder(name, objective):
    load_choices()
    # Wide enough for a deviation to be told from another.
    chosen = find("model", name)(layers=3, hidden=96, heads=4)
    return lambda: chosen.build(objective, VOCABULARY, 32)


@pytest.mark.parametrize(("name", "objective"), FAMILIES)
def test_first_values_are_those_that_transformers_would_draw(name, objective):
    """The same kind of draw for each parameter, the same zeros and ones, the same ties, and buffers bit by bit."""
    build = builder(name, objective)
    torch.manual_seed(0)
    theirs, ours = build(), deferred(build)
    assert all(parameter.is_meta for parameter in ours.parameters())
    assert {n: b.tolist() for n, b in ours.named_buffers()} == {n: b.tolist() for n, b in theirs.named_buffers()}
    ours = real_copy(ours)
    assert [n for n, _ in ours.named_parameters()] == [n for n, _ in theirs.named_parameters()]
    for (key, mine), (_, wanted) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert mine.shape == wanted.shape and torch.equal(mine == 0, wanted == 0), key
        spread = [float(values.double().square().mean().sqrt()) for values in (mine, wanted)]
        assert spread[0] == pytest.approx(spread[1], rel=0.5 if mine.numel() < 1000 else 0.1), key


def test_a_value_depends_on_seed_and_name_alone():
    """Not on what was read before, nor on the state of a generator, nor on the part that is asked for."""
    build = builder("gpt2", "causal")
    one, two, other = First(deferred(build), 3), First(deferred(build), 3), First(deferred(build), 4)
    name, shape = "model.transformer.h.1.mlp.c_fc.weight", (96, 384)
    values = one(name, "parameter", shape, whole(shape))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert torch.equal(two(name, "parameter", shape, Box((90, 5), (6, 300))), values[90:, 5:305])
    assert torch.equal(state, torch.get_rng_state()), "a draw of others would depend on what is read"
    assert not torch.equal(other(name, "parameter", shape, whole(shape)), values)
    twin = "model.transformer.h.2.mlp.c_fc.weight"
    assert not torch.equal(one(twin, "parameter", shape, whole(shape)), values)


def begun(world, strategy):
    placement = tiny.place(strategy, "bert", world)
    return tiny.weights(placement)


def test_c20_every_strategy_starts_from_the_same_bits():
    wanted = run_distributed(begun, 1, "single", group=False)[0]
    assert len(wanted) > 30 and any(values.any() for values in wanted.values())
    for strategy, world in (("ddp", 2), ("zero1", 2), ("zero2", 2), ("zero3", 3), ("fsdp", 3), ("hsdp", 4)):
        found = run_distributed(begun, world, strategy)[0]
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted), (strategy, world)


# -- a directory ------------------------------------------------------------------------------------------------------------------


def saved(folder, family, causal, **options):
    """A model of random weights in a directory, and what transformers reads there."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

    torch.manual_seed(0)
    kind = AutoModelForCausalLM if causal else AutoModelForMaskedLM
    kind.from_config(config_of(family)).save_pretrained(folder, **options)
    return kind.from_pretrained(folder, dtype=torch.float32)


def module_of(folder, causal, vocabulary=VOCABULARY):
    """A task's module around the model in a directory, and where its values come from."""
    chosen = Pretrained(path=str(folder))
    model = chosen.skeleton("causal" if causal else "masked", vocabulary, 16)
    module = CausalModule(model, 101) if causal else MaskedModule(model, 101)
    return module, chosen.weights(module, 0)


@pytest.mark.parametrize(("family", "causal"), [("gpt2", True), ("bert", False), ("llama", True)])
def test_a_directory_is_read_box_by_box(family, causal, tmp_path):
    """From several files; the values are those that transformers loads, and ties stay."""
    theirs = saved(tmp_path, family, causal, max_shard_size="20KB")
    assert len(files_in(tmp_path)) > 1
    module, weights = module_of(tmp_path, causal)
    assert all(parameter.is_meta for parameter in module.parameters()) and not weights.notice
    name, wanted = max(theirs.named_parameters(), key=lambda pair: pair[1].numel())
    part = Box((1, 2), (3, 4))
    assert torch.equal(weights(f"model.{name}", "parameter", tuple(wanted.shape), part), wanted[1:4, 2:6])
    materialise(module, weights, CPU)
    mine = dict(module.model.named_parameters(remove_duplicate=False))
    for key, values in theirs.named_parameters(remove_duplicate=False):
        assert torch.equal(mine[key], values), key
    assert (module.model.get_output_embeddings().weight is module.model.get_input_embeddings().weight) == theirs.config.tie_word_embeddings


def test_what_a_directory_lacks_is_told_and_new(tmp_path):
    """A body alone, in half precision and under the names of old checkpoints: the head is new, the rest is found."""
    from safetensors.torch import load_file, save_file

    theirs = saved(tmp_path, "bert", False)
    path = tmp_path / "model.safetensors"
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    body = {}
    for key, value in load_file(path).items():
        if key.startswith("bert."):
            end = ".".join(key.split(".")[-2:])
            body[key.removeprefix("bert.").replace(end, old.get(end, end))] = value.half()
    save_file(body, path, metadata={"format": "pt"})
    module, weights = module_of(tmp_path, False)
    assert "with first values: model.cls.predictions.bias, model.cls.predictions.transform.dense.weight" in weights.notice
    materialise(module, weights, CPU)
    for key, values in module.model.bert.named_parameters():
        assert values.dtype is torch.float32 and torch.equal(values, theirs.bert.get_parameter(key).half().float()), key
    assert module.model.cls.predictions.transform.dense.weight.std() > 0.1


def test_rows_for_added_tokens_are_new_and_the_others_are_found(tmp_path):
    theirs = saved(tmp_path, "gpt2", True)
    module, weights = module_of(tmp_path, True, Vocabulary(140, sentinels=12))
    materialise(module, weights, CPU)
    rows = module.model.transformer.wte.weight
    assert rows.shape[0] == 192 and module.model.lm_head.weight is rows
    assert torch.equal(rows[:128], theirs.transformer.wte.weight) and rows[128:].std() > 0.01


def test_what_cannot_be_read_in_parts_is_read_whole_and_told(tmp_path):
    theirs = saved(tmp_path, "gpt2", True)
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    module, weights = module_of(tmp_path, True)
    assert "read whole" in weights.notice and "no safetensors" in weights.notice
    materialise(module, weights, CPU)
    assert all(torch.equal(one, other) for one, other in zip(module.model.parameters(), theirs.parameters(), strict=True))


def test_a_file_that_contradicts_its_configuration_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    saved(tmp_path, "gpt2", True)
    path = tmp_path / "model.safetensors"
    save_file(load_file(path) | {"lm_head.weight": torch.zeros(128, 32)}, path, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"two different tensors; set tie_word_embeddings: false"):
        module_of(tmp_path, True)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/model.safetensors", "model.bin", "link.safetensors"])
def test_s02_an_index_that_leads_elsewhere_is_refused(name, tmp_path):
    folder = tmp_path / "hub" / "model"
    saved(folder, "gpt2", True)
    (folder / "model.safetensors").rename(tmp_path / "hub" / "model.safetensors")
    (folder / "link.safetensors").symlink_to(tmp_path / "hub" / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"transformer.wte.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ConfigError, match=r"model\.path: .*(allowed: names of \.safetensors files|not a regular file)"):
        module_of(folder, True)
