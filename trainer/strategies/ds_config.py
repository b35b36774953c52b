"""An existing `ds_config.json`, translated: what it says becomes overrides of our own keys, before anything is composed.

    trainer train experiment=quickstart strategy.ds_config=ds_config.json

What has a key of ours goes there, what only DeepSpeed has goes to `strategy.options`, `auto` is left to us, and what cannot be kept is
refused with its dotted key. Every translation is shown.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.choices import ConfigError, nearest, whole_number
from trainer.strategies.options import TOP_LEVEL

KEY = "strategy.ds_config"
_STRATEGIES = {0: "ddp", 1: "zero1", 2: "zero2", 3: "zero3"}
_OPTIMIZERS = {"adam": "adamw", "adamw": "adamw", "lamb": "lamb", "fusedlamb": "lamb", "lion": "lion", "fusedlion": "lion", "sgd": "sgd"}
_SCHEDULES = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}
# What the framework does by itself, and how; such keys say nothing more.
_OURS = {
    "gradient_accumulation_steps": "follows from global_batch, micro_batch and the devices",
    "steps_per_print": "metrics are logged every log_every steps",
    "zero_allow_untested_optimizer": "every optimizer that strategy and optimizer allow is tested",
    "zero_force_ds_cpu_optimizer": "the optimizer is the one that optim names",
    "prescale_gradients": "gradients are summed in fp32",
    "communication_data_type": "gradients are summed in fp32",
    "fp16.auto_cast": "products are fp16 by autocast",
    "fp16.loss_scale": "the loss scale is dynamic",
    "fp16.initial_scale_power": "the loss scale begins at 2^16",
    "fp16.loss_scale_window": "the loss scale doubles after 2000 finite steps",
    "fp16.hysteresis": "the loss scale halves at a step that is not finite",
    "fp16.min_loss_scale": "the loss scale is 1 or more",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "model/ is always written whole",
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": "model/ is always written whole",
    "zero_optimization.cpu_offload_use_pin_memory": "an old key; what is offloaded is in pinned memory",
    "zero_optimization.offload_optimizer.nvme_path": "nothing is kept on a disk",
    "zero_optimization.offload_param.nvme_path": "nothing is kept on a disk",
}
# Sections of what is offloaded: their name in older files, the key of ours, and the stages that can.
_OFFLOADS = {
    "offload_optimizer": ("cpu_offload", "strategy.offload_optimizer", (1, 2, 3)),
    "offload_param": ("cpu_offload_param", "strategy.offload_parameters", (3,)),
}
# What would change the result, or what the loop rests on.
_REFUSED = {
    "amp": "set precision=bf16 or precision=fp16 instead",
    "zero_optimization.zero_quantized_weights": "it would make weights less than fp32",
    "zero_optimization.zero_quantized_gradients": "it would make gradients less than fp32",
    "zero_optimization.zenflow": "it would make updates late",
    "zero_optimization.offload_optimizer.ratio": "the whole update is on the host, or none of it",
    "zero_optimization.offload_optimizer.super_offload": "the update is that of the optimizer that optim names",
    "sparse_attention": "models have attention of their own",
    "curriculum_learning": "the order of the data is that of Shardloom",
    "data_efficiency": "the order of the data is that of Shardloom",
    "compression_training": "it would change the model",
    "progressive_layer_drop": "it would change the model",
    "checkpoint": "checkpoints are Shardloom's own; see the checkpoint group",
    "activation_checkpointing": "set recompute.every=1 instead",
}
# Sections of older files, which may stand there switched off.
_OLD = ("elasticity", "eigenvalue", "nebula", "quantize_training", "sparse_gradients")
_SECTION = 'an object, such as {"key": "value"}, or null'


@dataclass(frozen=True)
class Translation:
    """One key of the file and what became of it. override: `key=value` of ours, or nothing, and then note says why."""

    source: str
    override: str = ""
    note: str = ""

    def __str__(self) -> str:
        return f"{self.source} → {self.override or self.note}{f' ({self.note})' if self.override and self.note else ''}"


def translated(words: list[str]) -> tuple[list[str], list[Translation]]:
    """Override words with `strategy.ds_config=PATH` replaced by what the file says. Raises ConfigError where a word says otherwise."""
    paths = [word.split("=", 1)[1] for word in words if word.split("=", 1)[0] == KEY and "=" in word]
    if not paths:
        return words, []
    rest = [word for word in words if word.split("=", 1)[0] != KEY]
    given = dict(word.split("=", 1) for word in rest if "=" in word)
    found = list(_translations(_read(paths[-1]), given))
    added = []
    for one in found:
        key, _, value = one.override.partition("=")
        if key in given and given[key] != value and not _same(given[key], value):
            raise ConfigError(f"{key}: {given[key]}, but {paths[-1]} says {one.source}, which is {one.override}; leave one of them out")
        if key and key not in given:
            added.append(one.override)
    return [*added, *rest], found


def _same(one: str, other: str) -> bool:
    try:
        return float(one) == float(other)
    except ValueError:
        return False


def _read(path: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise ConfigError(f"{KEY}: {path} does not exist") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{KEY}: {path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{KEY}: {path} holds no JSON object")
    return content


def _translations(content: dict[str, Any], given: dict[str, str]) -> Iterator[Translation]:
    """What becomes of each key of the file."""
    content = dict(content)
    known = {*TOP_LEVEL, *_OLD, *(key for key in _REFUSED if "." not in key)}
    for key in content:
        if key not in known:
            raise ConfigError(f"{KEY}: {key}: DeepSpeed has no such key{nearest(key, known)}; allowed: {', '.join(TOP_LEVEL)}")
    zero = _section(content, "zero_optimization")
    stage = zero.pop("stage", 0)
    if type(stage) is not int or stage not in _STRATEGIES:
        raise ConfigError(f"{KEY}: zero_optimization.stage: {_word(stage)}; allowed: 0, 1, 2, 3")
    yield Translation(f"zero_optimization.stage: {stage}", f"strategy={_STRATEGIES[stage]}")
    yield from _precision(content)
    yield from _optimizer(_section(content, "optimizer"))
    yield from _scheduler(_section(content, "scheduler"), given)
    for key, ours in (("train_batch_size", "global_batch"), ("train_micro_batch_size_per_gpu", "micro_batch")):
        if _silent(content.get(key, 0)):
            yield _left_out(key, content.pop(key))
        elif key in content:
            value = content.pop(key)
            yield Translation(f"{key}: {value}", f"{ours}={value}")
    clip = content.pop("gradient_clipping", "absent")
    if clip == "auto":
        yield _left_out("gradient_clipping", clip)
    elif clip != "absent":
        yield Translation(f"gradient_clipping: {clip}", f"optim.max_norm={clip or 'null'}")
    yield from _offload(zero, stage)
    for key, value in _section(content, "data_types").items():
        if key.endswith("_dtype") and not _silent(value) and value != "fp32":
            raise ConfigError(f"{KEY}: data_types.{key}: {value}; weights are fp32 and gradients are summed in fp32, remove it")
        yield _left_out(f"data_types.{key}", value, "" if _silent(value) else "the framework's own")
    yield from _passed_on(content, "", stage)
    yield from _passed_on(zero, "zero_optimization.", stage)


def _section(holder: dict[str, Any], name: str, prefix: str = "") -> dict[str, Any]:
    """An object, taken out of the one that holds it. One that is null, or left to us, is as one that is not there."""
    value = holder.pop(name, None)
    if _silent(value):
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{KEY}: {prefix}{name}: {_word(value)}; allowed: {_SECTION}")
    return dict(value)


def _silent(value: Any) -> bool:
    """Whether a value says nothing."""
    return value is None or value == "auto"


def _left_out(source: str, value: Any, why: str = "") -> Translation:
    return Translation(f"{source}: {value if isinstance(value, str) else _word(value)}", note=f"left out: {why or 'left to Shardloom'}")


def _precision(content: dict[str, Any]) -> Iterator[Translation]:
    old = _section(content, "bfloat16")  # the name of bf16 in older files
    parts = {"bf16": _section(content, "bf16") | old, "fp16": _section(content, "fp16")}
    asked = [name for name, part in parts.items() if part.get("enabled") is True]
    if len(asked) > 1:
        raise ConfigError(f"{KEY}: bf16.enabled and fp16.enabled are both true; leave one of them")
    for name, part in parts.items():
        if not (_silent(part.get("enabled")) or isinstance(part["enabled"], bool)):
            raise ConfigError(f"{KEY}: {name}.enabled: {_word(part['enabled'])}; allowed: true, false, auto")
    if any(not _silent(part.get("enabled")) for part in parts.values()):
        name = asked[0] if asked else "fp32"
        yield Translation(f"{name}.enabled: true" if asked else "bf16.enabled, fp16.enabled: false", f"precision={name}")
    scale = parts["fp16"].get("loss_scale", 0)
    if scale != 0 and not _silent(scale):
        raise ConfigError(f"{KEY}: fp16.loss_scale: {scale}; the loss scale is dynamic, set 0 or remove it")
    for name, part in parts.items():
        for key, value in part.items():
            source = f"{name}.{key}"
            if _silent(value):
                yield _left_out(source, value)
            elif key != "enabled" and name not in asked:
                yield _left_out(source, value, f"{name} is not enabled")
            elif key != "enabled" and source in _OURS:
                yield Translation(f"{source}: {_word(value)}", note=_OURS[source])
            elif key != "enabled":
                yield _left_out(source, value, "precision is Shardloom's own")


def _optimizer(section: dict[str, Any]) -> Iterator[Translation]:
    if not section:
        return
    name, params = str(section.get("type", "AdamW")), _section(section, "params", "optimizer.")
    ours = _OPTIMIZERS.get(name.lower())
    if ours is None:
        raise ConfigError(f"{KEY}: optimizer.type: {name}; allowed: {', '.join(sorted(_OPTIMIZERS))}; leave it out and set optim=…")
    yield Translation(f"optimizer.type: {name}", f"optim={ours}")
    if name.lower() == "adam" and "adam_w_mode" in params:
        if params["adam_w_mode"] is False:
            raise ConfigError(f"{KEY}: optimizer.params.adam_w_mode: false; decay is decoupled here, set it to true or leave it out")
        yield _left_out("optimizer.params.adam_w_mode", params.pop("adam_w_mode"), "decay is decoupled")
    if "torch_adam" in params:
        yield _left_out("optimizer.params.torch_adam", params.pop("torch_adam"), "the kernel is PyTorch's")
    betas = params.get("betas")
    if not _silent(betas):
        if not (isinstance(betas, list) and len(betas) == 2):
            raise ConfigError(f"{KEY}: optimizer.params.betas: {_word(betas)}; allowed: two numbers, such as [0.9, 0.999]")
        del params["betas"]
        params |= {"beta1": betas[0], "beta2": betas[1]}
    known = {"lr", "weight_decay", "beta1", "beta2", "eps", "momentum", "nesterov"}
    for key, value in params.items():
        if _silent(value):
            yield _left_out(f"optimizer.params.{key}", value)
            continue
        if key not in known:
            raise ConfigError(f"{KEY}: optimizer.params.{key}: {value}; there is no such option of optim={ours}; remove it")
        yield Translation(f"optimizer.params.{key}: {value}", f"optim.{key}={_word(value)}")


def _scheduler(section: dict[str, Any], given: dict[str, str]) -> Iterator[Translation]:
    if not section:
        return
    name, params = str(section.get("type")), _section(section, "params", "scheduler.")
    ours = _SCHEDULES.get(name)
    if ours is None:
        raise ConfigError(f"{KEY}: scheduler.type: {name}; allowed: {', '.join(_SCHEDULES)}; leave it out and set schedule=…")
    yield Translation(f"scheduler.type: {name}", f"schedule={ours}")
    for key in [key for key, value in params.items() if _silent(value)]:
        yield _left_out(f"scheduler.params.{key}", params.pop(key))
    for key in {"total_num_steps", "warmup_num_steps"} & params.keys():
        params[key] = whole_number(f"{KEY}: scheduler.params.{key}", params[key])
    total = params.pop("total_num_steps", None)
    if total is not None:
        yield Translation(f"scheduler.params.total_num_steps: {total}", f"steps={total}")
    warmup = params.pop("warmup_num_steps", None)
    if warmup is not None:
        steps = total or (int(given["steps"]) if given.get("steps", "").isdigit() else None)
        if not steps:
            raise ConfigError(
                f"{KEY}: scheduler.params.warmup_num_steps: {warmup}; a warm-up is a share of the budget here, so give steps=…"
            )
        if not 0 <= warmup < steps:
            raise ConfigError(f"{KEY}: scheduler.params.warmup_num_steps: {warmup}; allowed: from 0 to below the {steps} steps of the run")
        yield Translation(f"scheduler.params.warmup_num_steps: {warmup}", f"schedule.warmup={warmup / steps:.6g}", f"of {steps} steps")
    for low in {"warmup_min_lr", "warmup_min_ratio"} & params.keys():
        if value := params.pop(low):
            raise ConfigError(f"{KEY}: scheduler.params.{low}: {value}; a warm-up begins at 0 here; set 0 or remove it")
        yield _left_out(f"scheduler.params.{low}", 0, "so it is")
    if (peak := params.pop("warmup_max_lr", None)) is not None:
        yield Translation(f"scheduler.params.warmup_max_lr: {peak}", f"optim.lr={peak}")
    if (least := params.pop("cos_min_ratio", None)) is not None:
        yield Translation(f"scheduler.params.cos_min_ratio: {least}", f"schedule.min_factor={least}")
    if (shape := params.pop("warmup_type", None)) is not None:
        yield Translation(f"scheduler.params.warmup_type: {shape}", note="the warm-up is linear here")
    for key, value in params.items():
        raise ConfigError(f"{KEY}: scheduler.params.{key}: {value}; there is no such option of schedule={ours}; remove it")


def _offload(zero: dict[str, Any], stage: int) -> Iterator[Translation]:
    for section, (old, ours, stages) in _OFFLOADS.items():
        source, there = f"zero_optimization.{section}", section in zero
        given, before = _section(zero, section, "zero_optimization."), zero.pop(old, None)
        device = given.pop("device", "cpu" if before is True else "none")
        if _silent(device) or device == "none":
            if there:
                yield _left_out(f"{source}.device", device, "nothing is offloaded")
            if before is not None:
                yield _left_out(f"zero_optimization.{old}", before, "nothing is offloaded")
            continue  # what else the section says is of no use then
        told = f"zero_optimization.{old}: true" if before is True else f"{source}.device: {device}"
        if stage not in stages:
            raise ConfigError(f"{KEY}: {told}; stage {stage} cannot, allowed: stage {', '.join(map(str, stages))}; remove it from the file")
        if device != "cpu":
            raise ConfigError(f"{KEY}: {told}; allowed: none, cpu")
        yield Translation(told, f"{ours}={device}")
        if given.get("ratio") == 1.0:
            yield _left_out(f"{source}.ratio", given.pop("ratio"), "so it is")
        yield from _passed_on(given, f"{source}.", stage)


def _passed_on(section: dict[str, Any], prefix: str, stage: int) -> Iterator[Translation]:
    """What no key of ours stands for."""
    for key, value in section.items():
        source = f"{prefix}{key}"
        if _silent(value) or value == {}:
            yield _left_out(source, value)
            continue
        if isinstance(value, dict) and value.get("enabled") is False:
            yield _left_out(source, value, "it is not enabled")
            continue
        if source in _REFUSED and value is not False:
            raise ConfigError(f"{KEY}: {source}: {_REFUSED[source]}; remove it from the file")
        if source in _OURS or source in _REFUSED:
            yield Translation(f"{source}: {_word(value)}", note=_OURS.get(source, "so it is"))
        elif stage == 0:
            yield Translation(f"{source}: {_word(value)}", note="strategy=ddp has no use for it")
        else:
            yield _option(source, value)


def _option(source: str, value: Any) -> Translation:
    return Translation(f"{source}: {_word(value)}", f"strategy.options.{source}={_word(value)}")


def _word(value: Any) -> str:
    """A value as Hydra reads it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list):
        return "[" + ",".join(map(_word, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_word(inner)}" for key, inner in value.items()) + "}"
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"
