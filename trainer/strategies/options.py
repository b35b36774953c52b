"""Keys of DeepSpeed's own configuration, looked up when a run is composed: in the ranks, a wrong one is a traceback, or nothing."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, get_args

from trainer.choices import ConfigError, nearest

# What DeepSpeed 0.19 reads at the top of its configuration.
TOP_LEVEL = (
    "activation_checkpointing",
    "aio",
    "autotuning",
    "bf16",
    "bfloat16",
    "checkpoint",
    "comet",
    "comms_logger",
    "communication_data_type",
    "compile",
    "csv_monitor",
    "data_efficiency",
    "data_types",
    "dataloader_drop_last",
    "datastates",
    "disable_allgather",
    "disable_python_gc",
    "dump_state",
    "expert_parallel",
    "flops_profiler",
    "fp16",
    "gradient_accumulation_steps",
    "gradient_allreduce_op",
    "gradient_clipping",
    "gradient_predivide_factor",
    "hybrid_engine",
    "log_level",
    "managed_gradient_accumulation",
    "memory_breakdown",
    "optimizer",
    "pipeline",
    "prescale_gradients",
    "scheduler",
    "seq_parallel_communication_data_type",
    "sequence_parallel_size",
    "steps_per_print",
    "tensor_parallel",
    "tensorboard",
    "timers",
    "torch_autocast",
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "use_data_before_expert_parallelism",
    "vocabulary_size",
    "wall_clock_breakdown",
    "wandb",
    "weight_quantization",
    "zero_allow_untested_optimizer",
    "zero_force_ds_cpu_optimizer",
    "zero_optimization",
)


def refuse_unknown(options: dict[str, Any], zero: dict[str, Any], taken: Collection[str], device_type: str) -> None:
    """Raise ConfigError where DeepSpeed does not know a key of options, or a value in `zero_optimization`, complete in zero.

    taken: dotted keys that options may not have, which are not offered. device_type: where the run computes.
    """
    for key in options:
        if key not in TOP_LEVEL:
            raise _unknown((key,), TOP_LEVEL, taken)
    if "zero_optimization" not in options:
        return
    with _told(device_type):
        from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**zero)
    except ValidationError as error:
        first = error.errors()[0]
        path = ("zero_optimization", *map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise _unknown(path, _fields(DeepSpeedZeroConfig, path[1:-1]), taken) from error
        raise ConfigError(f"strategy.options.{'.'.join(path)}: {first['input']!r}; {first['msg']}") from error
    except AssertionError as error:  # an old key beside the one that replaced it
        raise ConfigError(f"strategy.options.zero_optimization: {error}") from error


def _unknown(path: tuple[str, ...], known: Iterable[str], taken: Collection[str]) -> ConfigError:
    *above, key = path
    allowed = [name for name in known if ".".join((*above, name)) not in taken]
    return ConfigError(
        f"strategy.options.{'.'.join(path)}: DeepSpeed has no such key{nearest(key, allowed)}; allowed: {', '.join(allowed)}"
    )


def _fields(model: Any, path: Iterable[str]) -> list[str]:
    """The keys of a section, each under the name that DeepSpeed documents, without those it replaced."""
    for name in path:
        hint = model.model_fields[name].annotation
        model = next(part for part in (hint, *get_args(hint)) if hasattr(part, "model_fields"))
    fields = model.model_fields.items()
    return sorted(field.alias or name for name, field in fields if not (field.json_schema_extra or {}).get("deprecated"))


@contextmanager
def _told(device_type: str) -> Iterator[None]:
    """Name the device while DeepSpeed is imported, which else guesses and warns; ranks started from here are told for themselves."""
    name, given = "DS_ACCELERATOR", os.environ.get("DS_ACCELERATOR")
    os.environ.setdefault(name, device_type)
    try:
        yield
    finally:
        if given is None:
            del os.environ[name]
