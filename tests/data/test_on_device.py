"""Steps on their way to a device: copied ahead on a GPU, untouched on a CPU."""

from types import SimpleNamespace

import pytest
import torch

from trainer.data.loading import on_device
from trainer.tasks import Batch


def steps(count):
    for number in range(count):
        values = {"input_ids": torch.full((1, 1000), number), "targets": torch.arange(number)}
        yield SimpleNamespace(micro_batches=[Batch(values, (1000,), {}), Batch(values, (1000,), {})])


def test_on_a_cpu_steps_are_what_the_loader_gave():
    given = list(steps(3))
    assert all(one is other for one, other in zip(on_device(iter(given), torch.device("cpu")), given, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="copying beside a computation needs a GPU")
def test_on_a_gpu_a_step_sees_its_own_values_though_the_host_is_ahead():
    device, work = torch.device("cuda"), torch.randn(2048, 2048, device="cuda")
    pinned = (SimpleNamespace(micro_batches=[batch.pinned() for batch in step.micro_batches]) for step in steps(20))
    sums = []
    for step in on_device(pinned, device):  # type: ignore[arg-type]
        for batch in step.micro_batches:
            work = work @ work / 50
            sums.append(batch.inputs["input_ids"].sum())
    assert torch.stack(sums).tolist() == [1000 * number for number in range(20) for _ in range(2)]
