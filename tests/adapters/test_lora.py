"""Frozen parameters under every strategy, in checkpoints and in exports, with LoRA as what is trained."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open

from tests.adapters.shared import LORA, adapted, finish, pretrained
from tests.distributed import run_distributed
from tests.loops import losses, ready, single, train, training
from trainer.checkpoint.opening import shapes_in
from trainer.checkpoint.retention import started_from
from trainer.choices import ConfigError
from trainer.cli import main


def test_only_the_adapter_is_trained_and_saved(alone, base):
    found = losses(alone)
    assert found[-1] < found[0] - 0.02 and found[0] < losses(base)[-1]
    held = shapes_in(alone / "checkpoints" / "step-0000006")
    assert held and all("lora_" in name for name in held)
    trained = sum(torch.Size(shape).numel() for shape in held.values())
    events = [json.loads(line) for line in (alone / "events.jsonl").read_text().splitlines()]
    start = next(event for event in events if event["kind"] == "start")
    assert start["trained_parameters"] == trained < start["parameters"] / 10
    assert json.loads((alone / "summary.json").read_text())["trained_parameters"] == trained
    table = next(event for event in events if event["kind"] == "proof")["tables"][0]
    assert {row["kind"]: row["bytes"] for row in table if row["kind"] != "parameter"} == dict.fromkeys(
        ("gradient", "exp_avg", "exp_avg_sq"), 4 * trained
    )


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_c20_the_same_curve_under_every_strategy_and_across_resumes(tmp_path, others, base, alone, strategy):
    """Two steps alone, two on two ranks, two alone: each reads what the other has saved, and the frozen part from where it lies."""
    path = tmp_path / "run"
    shutil.copytree(alone, path, ignore=shutil.ignore_patterns("step-0000004", "step-0000006", "summary.json", "metrics.jsonl", "model"))
    whole = {"zero3": ["strategy.options.zero_optimization.stage3_param_persistence_threshold=0"]}.get(strategy, [])
    adapted(tmp_path, others, base, "save_every=2", "checkpoint.keep=9", f"strategy={strategy}", *whole, world=2)
    run_distributed(train, 2, str(path), 4)
    adapted(tmp_path, others, base, "save_every=2", "checkpoint.keep=9")
    here = training(single(), path)
    assert here.step == 4
    here.loop()
    wanted, found = losses(alone)[2:], losses(path)
    assert len(found) == 4 and found == pytest.approx(wanted, rel=1e-5)


def test_f01_a_resume_is_bit_equal(tmp_path, others, base, alone):
    path = adapted(tmp_path, others, base)
    train(single(), path, last=3)
    again = train(single(), path)
    with training(single(), alone).placement.gathered() as module:
        assert all(torch.equal(again[name], tensor) for name, tensor in module.state_dict().items())


def test_b08_a_resume_beside_another_base_is_refused(tmp_path, others, base):
    copied = tmp_path / "copied"
    shutil.copytree(base, copied)
    words = ("steps=2", "adapter.rank=2")
    path = adapted(tmp_path, others, copied, *words)
    train(single(), path, last=1)
    weights = copied / "model" / "model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-4] + b"\x00\x00\x80\x3f")  # the last value of some tensor is 1.0
    with pytest.raises(ConfigError, match=r"model.path: .*copied/model: its values are not those that were trained with \(digest"):
        training(single(), path)
    weights.write_bytes(kept)
    assert training(single(), path).step == 1


def test_f10_a_checkpoint_that_lacks_what_is_trained_is_no_checkpoint(alone):
    """What is missing on purpose is named, so what is missing otherwise is still an error."""
    from trainer.checkpoint.files import CheckpointError

    here = training(single(), alone)
    manifest = json.loads((alone / "checkpoints" / "step-0000006" / "manifest.json").read_text())
    assert set(manifest["state"]["base"]["frozen"]) == {name for name, one in here.placement.named if not one.requires_grad}
    here.placement.named[0][1].requires_grad_(True)
    here.placement.trained.append(here.placement.named[0])
    from trainer.checkpoint.opening import open_newest

    with pytest.raises(CheckpointError, match=r"holds no parameter of model.transformer.wte.weight"):
        here.placement.load(open_newest(alone / "checkpoints", single()).read)


def logits(model, tokens):
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits


def test_what_is_exported_is_read_by_peft_merged_by_us_and_evaluated(alone, base, tmp_path, capsys):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from trainer.run import RunDir
    from trainer.verbs.evaluate import held_out

    folder, tokens = alone / "model", torch.randint(0, 250, (2, 9), generator=torch.Generator().manual_seed(0))
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        assert all(".lora_" in key and "default" not in key for key in file.keys())  # noqa: SIM118
    plain = AutoModelForCausalLM.from_pretrained(base / "model")
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base / "model"), str(folder))
    assert (logits(peft, tokens) - logits(plain, tokens)).abs().max() > 1e-3
    assert main(["export", f"run={alone}", "merge=true", f"output={tmp_path}/merged"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged, tokens), logits(peft, tokens), atol=1e-5, rtol=1e-5)
    # By its folder alone, which names the model that it belongs to.
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(folder), tokens), logits(peft, tokens))
    recorded = json.loads((alone / "summary.json").read_text())
    assert held_out(RunDir(alone))["eval_loss"] == pytest.approx(recorded["eval_loss"], rel=1e-5)
    capsys.readouterr()
    assert main(["generate", f"run={alone}", "prompt=alpha", "max_tokens=3", "temperature=0"]) == 0
    assert capsys.readouterr().out.startswith("alpha")


def test_another_run_is_a_base_too_and_its_checkpoint_stays(tmp_path, texts, base):
    """Its weights are in no folder that transformers reads, so they are written beside the adapter."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    path = ready(tmp_path, texts, *LORA, "steps=2", f"init.run={base}@24")
    finish(path)
    assert losses(path)[0] < losses(base)[0] - 1
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(path / "model" / "base"), str(path / "model"))
    assert peft.peft_config["default"].base_model_name_or_path == str(path / "model" / "base")
    assert started_from([path]) == {base / "checkpoints" / "step-0000024": "run"}
    with pytest.raises(ConfigError, match=r"init.run: .* holds? only what|merge=true"):
        ready(tmp_path, texts, f"init.run={path}", name="third")


def test_patterns_freeze_and_the_export_is_whole(tmp_path, texts, base):
    from transformers import AutoModelForCausalLM

    frozen = ("*.wte.weight", "*.h.0.*")
    words = (*pretrained(base), f"optim.freeze=[{','.join(frozen)}]", "steps=2")
    path = ready(tmp_path, texts, *words, sizes=("model=pretrained",))
    finish(path)
    before, after = (dict(AutoModelForCausalLM.from_pretrained(each / "model").named_parameters()) for each in (base, path))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name == "transformer.wte.weight" or name.startswith("transformer.h.0.")}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["adapter.targets=[c_atn]"],
            r"adapter.targets: 'c_atn' names no layer of this gpt2; allowed: all, or of c_attn.*did you mean 'c_attn'",
        ),
        (["adapter.targets=[lm_head]"], "shares its weight with transformer.wte"),
        (["adapter.targets=some"], "allowed: null, all"),
        (["adapter.beside=[*.nothing]"], r"adapter.beside: '\*.nothing' matches no parameter"),
        (
            ["adapter=none", "optim.freeze=[transformer.wte.weight]"],
            r"optim.freeze: .* matches no parameter; .*did you mean 'model.transformer.wte",
        ),
        (["adapter=none", "optim.freeze=['*']"], "freezes every parameter"),
    ],
)
def test_what_the_model_has_not_is_told_before_launch(tmp_path, texts, base, words, told):
    chosen = [word for word in LORA[:3] if not any(one.startswith("adapter=") for one in words) or not word.startswith("adapter")]
    with pytest.raises(ConfigError, match=told):
        ready(tmp_path, texts, *chosen, *words)
