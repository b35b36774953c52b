"""Gradients rounded to bf16 on their way between ranks: what DistributedDataParallel calls with every bucket.

torch's own hook of this kind refuses a CPU by its name. It looks at annotations as values, so there is no `from __future__` here.
"""

import torch
import torch.distributed as dist


def in_bfloat16(group: dist.ProcessGroup | None, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """The mean over ranks of a bucket's gradients, in the bucket's own memory. group: of all ranks, for None."""
    gradients = bucket.buffer()
    sent = gradients.to(torch.bfloat16).div_(dist.get_world_size(group))
    summed = dist.all_reduce(sent, group=group, async_op=True).get_future()
    return summed.then(lambda found: gradients.copy_(found.value()[0]))
