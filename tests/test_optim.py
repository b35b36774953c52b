"""Optimizers: groups, what Muon does to a matrix, and that a dropped or clipped step is exact on the device."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tests.distributed import run_distributed
from trainer.choices import ConfigError
from trainer.optim import AdamW, Lamb, Lion, Muon
from trainer.optimizers import muon
from trainer.optimizers.muon import orthogonalize
from trainer.parameter_groups import RULES, Own
from trainer.strategies.torch_driven import require_skipping, step

CHOICES = [AdamW(lr=1e-2), Muon(lr=1e-2)]


def named():
    torch.manual_seed(0)
    shapes = {"wte.weight": (12, 8), "h.0.attn.weight": (8, 24), "h.1.attn.weight": (8, 24), "h.0.mlp.weight": (32, 8), "ln.weight": (8,)}
    return [(name, torch.nn.Parameter(torch.randn(shape))) for name, shape in shapes.items()]


def snapshot(optimizer, parameters):
    state = [tensor.clone() for _, parameter in parameters for tensor in optimizer.state[parameter].values()]
    return [parameter.detach().clone() for _, parameter in parameters] + state


def fill(parameters, scale=1.0):
    torch.manual_seed(1)
    for _, parameter in parameters:
        parameter.grad = scale * torch.randn_like(parameter)


def test_decay_is_for_matrices_only():
    groups = AdamW(weight_decay=0.3).build(iter(named())).param_groups
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.3, 4), (0.0, 1)]
    assert all(group["base_lr"] == group["lr"] for group in groups)


@pytest.mark.parametrize("kind", ["gpt", "bert"])
@pytest.mark.parametrize("rule", [*RULES, "patterns"])
def test_what_decays_is_read_off_the_names(kind, rule):
    parameters = dict(tiny.module(kind).named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    patterns = {"gpt": ["*.attn.*weight", "*wte*"], "bert": ["*query*"]}[kind]
    groups = Lion(decay=patterns if rule == "patterns" else rule, weight_decay=0.3).build(parameters.items()).param_groups
    decayed = {names[id(parameter)] for group in groups for parameter in group["params"] if group["weight_decay"] == 0.3}
    plain = {names[id(parameter)] for group in groups for parameter in group["params"] if group["weight_decay"] == 0.0}
    assert decayed | plain == parameters.keys() and not decayed & plain
    matrices = {name for name, parameter in parameters.items() if parameter.ndim == 2}
    tables = {name for name in parameters if name.endswith(("wte.weight", "wpe.weight", "embeddings.weight"))}
    assert len(tables) == {"gpt": 2, "bert": 3}[kind]
    matched = {name for name in matrices if ".attn." in name or "wte" in name} | {name for name in parameters if "query" in name}
    wanted = {"matrices": matrices, "all": set(parameters), "no_norm_bias": matrices, "no_norm_bias_embedding": matrices - tables}
    assert decayed == (wanted | {"patterns": matched})[rule]


def test_layer_decay_lowers_the_rate_from_block_to_block():
    for kind, entry, top in (("gpt", "wpe.weight", "ln_f.weight"), ("bert", "word_embeddings.weight", "seq_relationship.weight")):
        parameters = list(tiny.module(kind).named_parameters())
        rates = {name: group["base_lr"] for group in Lion(lr=1.0, layer_decay=0.5).build(iter(parameters)).param_groups
                 for name, parameter in parameters if any(parameter is member for member in group["params"])}  # fmt: skip
        assert len(rates) == len(parameters)
        for name, rate in rates.items():
            block = next((number for number in (0, 1) if f"h.{number}." in name or f"layer.{number}." in name), None)
            assert rate == {0: 0.25, 1: 0.5, None: 0.125 if name.endswith(entry) else rate}[block]
        assert {rate for name, rate in rates.items() if name.endswith((entry, top))} == {0.125, 1.0}
    groups = Muon(lr=1.0, matrix_lr=2.0, layer_decay=0.5).build(iter(named())).param_groups
    assert sorted((group["kind"], group["base_lr"]) for group in groups) == [
        ("adamw", 0.125), ("adamw", 1.0), ("muon", 0.5), ("muon", 1.0)]  # fmt: skip


def test_groups_have_rates_and_decays_of_their_own():
    """The first that matches; a rate of its own whatever the layer, a factor times the layer's."""
    own = [Own("*mlp*", factor=10.0), Own(["*attn*", "*mlp*"], lr=5.0), Own("ln*", weight_decay=0.5)]
    rules = {"lr": 1.0, "layer_decay": 0.5, "weight_decay": 0.3, "groups": own}
    for choice in (Lion(**rules), Muon(matrix_lr=2.0, **rules), Lamb(**rules)):
        parameters = named()
        found = {name: group for group in choice.build(iter(parameters)).param_groups
                 for name, parameter in parameters if any(parameter is member for member in group["params"])}  # fmt: skip
        base = 2.0 if choice.name == "muon" else 1.0
        rates = {"wte.weight": 0.125, "h.0.attn.weight": 5.0, "h.1.attn.weight": 5.0, "h.0.mlp.weight": 10 * 0.25 * base, "ln.weight": 1.0}
        assert {name: group["base_lr"] for name, group in found.items()} == rates
        assert {name: group["weight_decay"] for name, group in found.items()} == dict.fromkeys(rates, 0.3) | {"ln.weight": 0.5}
        assert found["ln.weight"]["decays"]


@pytest.mark.parametrize("options, words", [
    ({"groups": [Own("*nothing*")]}, r"optim\.groups\[0\]\.pattern: '\*nothing\*' matches no parameter that is trained; there are weight"),
    ({"groups": [Own()]}, r"optim\.groups\[0\]\.pattern: None"), ({"groups": [Own("*", factor=0.0)]}, r"groups\[0\]\.factor: 0.0"),
    ({"groups": [Own("*", lr=1.0, factor=2.0)]}, r"optim\.groups\[0\]\.lr: 1.0 with .*not both"),
    ({"decay": "no_bias"}, "optim.decay: 'no_bias'; allowed: matrices, all, no_norm_bias, .*did you mean"),
    ({"decay": []}, "optim.decay"), ({"layer_decay": 0.0}, "optim.layer_decay: 0.0"), ({"layer_decay": 1.5}, "optim.layer_decay: 1.5"),
    ({"decay": ["*.nothing"]}, r"optim.decay: '\*.nothing' matches no parameter"),
    ({"layer_decay": 0.9}, "optim.layer_decay: 0.9; this model's parameters name no blocks"),
])  # fmt: skip
def test_group_options_that_cannot_be_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        AdamW(**options).build([("weight", torch.nn.Parameter(torch.zeros(2, 2)))])


def test_muon_takes_hidden_matrices_and_adamw_the_rest():
    parameters = named()
    names = {id(parameter): name for name, parameter in parameters}
    groups = Muon().build(iter(parameters)).param_groups
    by_kind = {kind: {names[id(p)] for g in groups if g["kind"] == kind for p in g["params"]} for kind in ("muon", "adamw")}
    assert by_kind == {"muon": {"h.0.attn.weight", "h.1.attn.weight", "h.0.mlp.weight"}, "adamw": {"wte.weight", "ln.weight"}}
    gpt = {name for name, p in tiny.module("gpt").named_parameters() if p.ndim == 2}
    bert = {name for name, p in tiny.module("bert").named_parameters() if p.ndim == 2}
    for model, tables in ((gpt, 2), (bert, 5)):  # wte, wpe; three embeddings, the head's transform, the relation
        parameters = [(name, torch.nn.Parameter(torch.zeros(2, 2))) for name in model]
        (rest,) = (group for group in Muon().build(iter(parameters)).param_groups if group["kind"] == "adamw")
        assert len(rest["params"]) == tables


@pytest.mark.parametrize("shape", [(2, 16, 16), (3, 8, 40), (1, 40, 8)])
def test_orthogonalized_singular_values_are_near_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape), 5))
    assert values.min() > 0.3 and values.max() < 1.3
    # One matrix of a batch does not depend on the others.
    batch = torch.randn(shape)
    assert torch.allclose(orthogonalize(batch, 5)[0], orthogonalize(batch[:1], 5)[0], atol=1e-5)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
def test_c18_a_dropped_step_changes_nothing(choice):
    parameters = named()
    optimizer = choice.build(iter(parameters))
    require_skipping(optimizer)
    fill(parameters)
    step(optimizer, torch.zeros(()), None)
    before = snapshot(optimizer, parameters)
    parameters[1][1].grad[0, 0] = float("nan")
    parameters[4][1].grad[0] = float("inf")
    step(optimizer, torch.ones(()), torch.tensor(float("nan")))
    assert all(torch.equal(old, new) for old, new in zip(before, snapshot(optimizer, parameters), strict=True))


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.name)
def test_c16_scaling_in_the_step_is_scaling_before_it(choice):
    results = []
    for inside in (True, False):
        parameters = named()
        optimizer = choice.build(iter(parameters))
        fill(parameters, 1.0 if inside else 1 / 8)
        step(optimizer, torch.zeros(()), torch.tensor(8.0) if inside else None)
        results.append(snapshot(optimizer, parameters))
    assert all(torch.allclose(one, other, rtol=1e-5, atol=1e-7) for one, other in zip(*results, strict=True))


def test_adamw_part_of_muon_is_torchs_adamw():
    results = []
    for build in (lambda p: Muon(lr=1e-2).build(iter(p)), lambda p: AdamW(lr=1e-2).build(iter(p))):
        parameters = [entry for entry in named() if not entry[0].startswith("h.")]
        optimizer = build(parameters)
        for _ in range(3):
            fill(parameters)
            step(optimizer, torch.zeros(()), None)
        results.append([parameter.detach() for _, parameter in parameters])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_an_optimizer_that_cannot_drop_a_step_is_refused():
    with pytest.raises(TypeError, match="cannot drop a step"):
        require_skipping(torch.optim.NAdam([torch.nn.Parameter(torch.zeros(2))]))


@pytest.mark.parametrize("field", [{"lr": 0.0}, {"beta1": 1.0}, {"weight_decay": -0.1}, {"max_norm": 0.0}, {"eps": -1.0}])
def test_bad_options_are_named(field):
    with pytest.raises(ConfigError, match=f"optim.{next(iter(field))}: "):
        AdamW(**field)


def muon_curve(world, strategy):
    placement = tiny.place(strategy, "gpt", world, optim=Muon(lr=2e-3))
    return tiny.train(placement, "gpt", range(12))["losses"] + [placement.scalars()["optimizer_step"]]


def test_c20_muon_has_one_curve_alone_and_under_ddp():
    (alone,) = run_distributed(muon_curve, 1, "single", group=False)
    assert alone[11] < 0.9 * alone[0] and alone[12] == 12
    assert run_distributed(muon_curve, 2, "ddp")[0] == pytest.approx(alone, rel=2e-5)


def shared_out(world):
    """Muon's curve with a dropped step, its weights, and how many matrices this rank has orthogonalized a step."""
    counted = []
    original = muon.orthogonalize
    muon.orthogonalize = lambda matrices, iterations: counted.append(len(matrices)) or original(matrices, iterations)
    try:
        placement = tiny.place("ddp" if world.size > 1 else "single", "gpt", world, optim=Muon(lr=5e-3))
        seen = tiny.train(placement, "gpt", range(6), micro_batches=2, poison=2)
    finally:
        muon.orthogonalize = original
    # Once more before the first step, to make the state.
    return seen | {"weights": tiny.weights(placement), "matrices": sum(counted) / 7, "kinds": {piece.kind for piece in placement.pieces()}}


def test_c20_muon_shared_out_over_three_ranks_is_muon_on_one():
    alone = run_distributed(shared_out, 1, group=False)[0]
    found = run_distributed(shared_out, 3)
    # Four matrices in each of two blocks.
    assert alone["matrices"] == 8 and sum(rank["matrices"] for rank in found) == 8 and max(rank["matrices"] for rank in found) < 8
    for rank in found:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-5) and rank["applied"] == alone["applied"]
        assert rank["kinds"] == alone["kinds"]
    assert alone["applied"][2] == 0.0 and tiny.distance(found[0]["weights"], alone["weights"]) < 1e-4


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), max_size=12), st.integers(1, 5))
def test_every_matrix_has_one_rank_and_none_has_much_more_than_others(sizes, ranks):
    shapes = tuple(torch.Size(size) for size in sizes)
    found = muon.shares(shapes, ranks)
    assert sorted(index for share in found for index in share) == list(range(len(shapes)))
    work = [sum(min(shapes[index]) ** 2 * max(shapes[index]) for index in share) for share in found]
    largest = max((min(shape) ** 2 * max(shape) for shape in shapes), default=0)
    assert max(work) - min(work) <= largest
