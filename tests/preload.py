"""What the fork server of tests/distributed.py imports once for all ranks."""

import importlib

NAMES = ("torch.distributed.fsdp", "torch.nn.parallel.distributed", "transformers.models.gpt2.modeling_gpt2",
         "transformers.models.bert.modeling_bert", "accelerate", "deepspeed", "safetensors.torch")  # fmt: skip

for name in NAMES:
    importlib.import_module(name)
