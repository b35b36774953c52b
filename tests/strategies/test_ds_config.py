"""An existing ds_config.json at composition: translated, shown, and refused where it cannot be kept."""

import json
import os

import pytest

from trainer import compose
from trainer.choices import ConfigError
from trainer.strategies.ds_config import translated
from trainer.strategies.zero import Offload

# As trainers ship them: everything left to the trainer, with the usual sizes.
ZERO2 = {
    "fp16": {
        "enabled": "auto",
        "loss_scale": 0,
        "loss_scale_window": 1000,
        "initial_scale_power": 16,
        "hysteresis": 2,
        "min_loss_scale": 1,
    },
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}},
    "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"}},
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "none"},
        "allgather_partitions": True,
        "allgather_bucket_size": 2e8,
        "overlap_comm": True,
        "reduce_scatter": True,
        "reduce_bucket_size": 2e8,
        "contiguous_gradients": True,
    },
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
}
ZERO3 = {
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": 3e-5, "betas": [0.8, 0.999], "eps": 1e-8, "weight_decay": 3e-7}},
    "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 4000, "warmup_min_lr": 0, "warmup_max_lr": 3e-5,
                                                       "warmup_num_steps": 500, "warmup_type": "linear"}},
    "zero_optimization": {
        "stage": 3,
        "offload_param": {"device": "none"},
        "overlap_comm": True,
        "sub_group_size": 1e9,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_max_live_parameters": 1e9,
        "stage3_gather_16bit_weights_on_model_save": True,
    },
    "gradient_clipping": 1.0,
    "steps_per_print": 2000,
    "train_batch_size": 96,
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": 3,
    "wall_clock_breakdown": False,
}  # fmt: skip


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "ds_config.json"
        path.write_text(json.dumps(content))
        return f"strategy.ds_config={path}"

    return write


def test_what_is_left_to_the_trainer_is_left_to_us(written):
    config = compose("steps=10", written(ZERO2))
    assert config.strategy.name == "zero2" and config.precision.name == "fp32"
    settings = config.strategy.settings(config)
    assert settings["zero_optimization"]["reduce_bucket_size"] == 2e8
    assert '"auto"' not in json.dumps(settings)


def test_every_value_reaches_the_key_that_stands_for_it_and_is_shown(written, capsys):
    config = compose(written(ZERO3))
    assert (config.strategy.name, config.precision.name, config.global_batch, config.micro_batch) == ("zero3", "bf16", 96, 4)
    assert (config.steps, config.schedule.name, config.schedule.warmup) == (4000, "linear", 0.125)
    optim = config.optim
    assert (optim.name, optim.lr, optim.beta1, optim.beta2, optim.weight_decay, optim.max_norm) == ("adamw", 3e-5, 0.8, 0.999, 3e-7, 1.0)
    zero = config.strategy.settings(config)["zero_optimization"]
    assert zero["stage"] == 3 and zero["sub_group_size"] == 1e9 and zero["stage3_max_live_parameters"] == 1e9
    assert config.strategy.ds_config is None
    told = capsys.readouterr().err
    for line in (
        "zero_optimization.stage: 3 → strategy=zero3",
        "gradient_clipping: 1.0 → optim.max_norm=1.0",
        "train_batch_size: 96 → global_batch=96",
        "bf16.enabled: true → precision=bf16",
        "scheduler.params.warmup_num_steps: 500 → schedule.warmup=0.125 (of 4000 steps)",
        "stage3_gather_16bit_weights_on_model_save: true → model/ is always written whole",
        "zero_optimization.overlap_comm: true → strategy.options.zero_optimization.overlap_comm=true",
    ):
        assert line in told


@pytest.mark.parametrize(("change", "words", "message"), [
    ({"train_batch_size": 96}, ["global_batch=32"], "global_batch: 32, but .*train_batch_size: 96"),
    ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, [], r"bf16\.enabled and fp16\.enabled are both true"),
    ({"fp16": {"enabled": True, "loss_scale": 128}}, [], r"fp16\.loss_scale: 128; the loss scale is dynamic"),
    ({"optimizer": {"type": "OneBitAdam"}}, [], r"optimizer\.type: OneBitAdam; allowed: adam"),
    ({"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}}, [], r"optimizer\.params\.adam_w_mode: false"),
    ({"scheduler": {"type": "OneCycle"}}, [], r"scheduler\.type: OneCycle; allowed: WarmupLR"),
    ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 5}}}, ["tokens=9"], r"warmup_num_steps: 5; .* give steps="),
    ({"zero_optimization": {"stage": 2, "zero_quantized_weights": True}}, [], "zero_quantized_weights: it would make weights less"),
    ({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "nvme"}}}, [], "optimizer.device: nvme; allowed: none, cpu"),
    ({"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "ratio": 0.3}}}, [], "offload_optimizer.ratio: the whole"),
    ({"zero_optimization": {"stage": 0, "cpu_offload": True}}, [], "cpu_offload: true; stage 0 cannot, allowed: stage 1, 2, 3"),
    ({"zero_optimization": {"stage": 4}}, [], r"zero_optimization\.stage: 4; allowed: 0, 1, 2, 3"),
    ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, [], "param.device: cpu; stage 2 cannot, allowed: stage 3"),
    ({"zero_optimization": True}, [], "zero_optimization: true; allowed: an object"),
    ({"bf16": True}, [], "bf16: true; allowed: an object"),
    ({"zero_optimization": {"stage": [1]}}, [], r"zero_optimization\.stage: \[1\]; allowed: 0"),
    ({"optimizer": {"params": {"betas": [0.9]}}}, [], r"params\.betas: \[0\.9\]; allowed: two numbers"),
    ({"zero_optimizaton": {"stage": 2}}, [], "zero_optimizaton: DeepSpeed has no such key; did you mean 'zero_optimization'"),
    ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 50}}}, [], "warmup_num_steps: 50; .* below the 10 steps"),
    ({"scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": [5]}}}, [], r"warmup_num_steps: \[5\]; allowed: a whole"),
    ({"data_types": {"grad_accum_dtype": "bf16"}}, [], r"data_types\.grad_accum_dtype: bf16; .*gradients are summed in fp32"),
])  # fmt: skip
def test_b16_what_cannot_be_kept_is_refused_with_its_key(change, words, message, written):
    with pytest.raises(ConfigError, match=message):
        compose(*(words if "tokens=9" in words else ["steps=10", *words]), written(change))


def test_offload_reaches_its_keys_from_new_files_and_old_ones(written, capsys):
    section = {"device": "cpu", "pin_memory": False, "nvme_path": "/local_nvme", "ratio": 1.0, "buffer_count": "auto"}
    config = compose(
        "steps=10", written({"zero_optimization": {"stage": 3, "offload_optimizer": section, "offload_param": {"device": "cpu"}}})
    )
    assert (config.strategy.offload_optimizer, config.strategy.offload_parameters) == (Offload.cpu, Offload.cpu)
    assert config.strategy.settings(config)["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": False}
    assert "zero_optimization.offload_param.device: cpu → strategy.offload_parameters=cpu" in capsys.readouterr().err
    config = compose("steps=10", written({"zero_optimization": {"stage": 2, "cpu_offload": True}}))
    assert (config.strategy.name, config.strategy.offload_optimizer) == ("zero2", Offload.cpu)
    assert "zero_optimization.cpu_offload: true → strategy.offload_optimizer=cpu" in capsys.readouterr().err


def test_stage_0_is_ddp_and_a_word_that_agrees_is_no_contradiction(written):
    config = compose(
        "steps=10", "global_batch=16", written({"train_batch_size": 16, "zero_optimization": {"stage": 0, "overlap_comm": True}})
    )
    assert config.strategy.name == "ddp" and config.global_batch == 16


def test_a_file_that_is_not_there_or_no_json(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        translated([f"strategy.ds_config={tmp_path / 'none.json'}"])
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        translated([f"strategy.ds_config={tmp_path / 'bad.json'}"])


def test_what_is_null_is_not_there_and_what_is_left_out_is_shown(written, capsys):
    config = compose("steps=10", written({
        "bf16": None, "zero_optimization": None, "optimizer": {"type": "Adam", "params": None}, "gradient_accumulation_steps": "auto",
        "flops_profiler": {"enabled": False}, "data_types": {"grad_accum_dtype": "fp32"}, "fp16": {"enabled": False, "hysteresis": 2},
        "train_batch_size": "auto",
    }))  # fmt: skip
    assert (config.strategy.name, config.optim.name, config.precision.name) == ("ddp", "adamw", "fp32")
    told = capsys.readouterr().err
    for line in (
        "gradient_accumulation_steps: auto → left out: left to Shardloom",
        "train_batch_size: auto → left out: left to Shardloom",
        "flops_profiler: {enabled:false} → left out: it is not enabled",
        "data_types.grad_accum_dtype: fp32 → left out: the framework's own",
        "fp16.hysteresis: 2 → left out: fp16 is not enabled",
    ):
        assert line in told


@pytest.mark.parametrize(("option", "message"), [
    ("foo=3", r"options\.foo: DeepSpeed has no such key.*; allowed: .*aio"),
    ("wall_clock_breakdwn=true", "did you mean 'wall_clock_breakdown'"),
    ("zero_optimization=true", "zero_optimization: True; allowed: a section"),
    ("zero_optimization.foo=3", r"options\.zero_optimization\.foo: DeepSpeed has no such key.*; allowed: .*overlap_comm"),
    ("zero_optimization.overlap_com=true", "did you mean 'overlap_comm'"),
    ("zero_optimization.overlap_comm=3", r"options\.zero_optimization\.overlap_comm: 3; Input should be a valid boolean"),
    ("zero_optimization.offload_optimizer.pin_memry=true", "offload_optimizer.pin_memry: .* did you mean 'pin_memory'.*; allowed: buffer"),
])  # fmt: skip
def test_b16_an_option_that_deepspeed_does_not_know_is_refused_when_composed(option, message):
    with pytest.raises(ConfigError, match=message):
        compose("steps=10", "strategy=zero2", "strategy.offload_optimizer=cpu", f"strategy.options.{option}")


def test_options_are_looked_up_under_either_name_and_leave_the_environment(monkeypatch):
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    for name in ("stage3_prefetch_bucket_size", "prefetch_bucket_size"):
        assert compose("steps=10", "strategy=zero3", f"strategy.options.zero_optimization.{name}=1000000").strategy.options
    assert "DS_ACCELERATOR" not in os.environ
