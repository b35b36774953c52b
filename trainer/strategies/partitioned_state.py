"""Moments and masters in partitions, parameters whole: what `zero1` and `zero2` drive."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from trainer.strategies.partitioned import Partitioned, Range
from trainer.strategies.torch_driven import is_count

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from trainer.distributed import World


class PartitionedState(Partitioned):
    """Stages 1 and 2: whole parameters on every rank, of which each updates a part."""

    def __init__(self, engine: DeepSpeedEngine, task_module: nn.Module, named: list[tuple[str, nn.Parameter]], world: World):
        self.task_module = task_module
        self.named = named
        self.trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        self._is_final = False
        super().__init__(engine, world)
        self.zero._lazy_init_hp_params_optimizer_state()

    def masters(self) -> list[Tensor]:
        return list(self.zero.single_partition_of_fp32_groups)

    def mapped(self) -> Iterator[tuple[str, nn.Parameter, Any]]:
        """Name, parameter, and DeepSpeed's record of the flat range that this rank owns, where it owns one."""
        for name, parameter in self.trained:
            mapping = parameter._hp_mapping  # type: ignore[attr-defined]
            if mapping is not None and mapping.lp_fragment_address.numel:
                yield name, parameter, mapping

    def ranges(self) -> Iterator[Range]:
        for name, parameter, mapping in self.mapped():
            state = {"parameter": mapping.get_hp_fragment().detach()}
            state |= {kind: mapping.get_hp_fragment(kind).detach() for kind in mapping.get_optim_state_keys()}
            yield Range(name, tuple(parameter.shape), mapping.lp_fragment_address.start, state)

    def follow(self) -> None:
        self.zero.update_lp_params()

    def gathered(self) -> AbstractContextManager[nn.Module]:
        return nullcontext(self.task_module)

    # Gradients.

    def finish(self, lr_factor: float, max_norm: float | None) -> tuple[Tensor, Tensor]:
        self._is_final = False
        return super().finish(lr_factor, max_norm)

    def finalize(self) -> None:
        if self._is_final:
            return
        self._is_final = True
        if self.zero.partition_gradients:
            self.zero.finalize_gradient_accumulation_boundary()
        else:
            # Stage 1 has accumulated whole gradients on every rank, and reduces them at the boundary.
            self.zero.set_gradient_accumulation_boundary(True)
            self.zero.reduce_gradients()

    def drop(self) -> Tensor:
        self._is_final = False
        norm: Tensor = self.zero.scaled_global_norm().to(self.device)
        self.zero.zero_grad(set_to_none=True)
        if self.zero.cpu_offload:
            self.zero.reset_cpu_buffers()
            self.zero._offload_accumulated_param_ids = set()
            # The next backward is the first of its step, and writes over what is accumulated on the host.
            self.zero.micro_step_id = -1
        for group in self.zero.averaged_gradients:
            self.zero.averaged_gradients[group] = self.zero.all_grad_tensors[group] = None
        return norm

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        self.finalize()
        if self.zero.cpu_offload:
            for name, _, mapping in self.mapped():
                address = mapping.hp_fragment_address
                yield name, self.masters()[mapping.param_group_index].grad.narrow(0, address.start, address.numel)
            return
        # Cut to what is in the own range already: outside of it a gradient is not reduced.
        grads = {
            id(parameter): grad
            for group, tensors in self.zero.averaged_gradients.items()
            for parameter, grad in zip(self.zero.params_in_partition[group], tensors, strict=False)
        }
        for name, parameter, _ in self.mapped():
            yield name, grads[id(parameter)].detach().flatten()

    # What is where.

    def state_table(self) -> list[dict[str, Any]]:
        gradients = [grad for tensors in self.zero.all_grad_tensors.values() for grad in tensors or ()]
        gradients += [parameter.grad for _, parameter in self.named if parameter.grad is not None]
        if self.zero.cpu_offload:
            gradients += self.zero.accumulated_grads_in_cpu.values()
        return self.table([*self.zero.bit16_groups_flat, *self._frozen()], gradients)

    def _frozen(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.named if not parameter.requires_grad]

    def shares(self) -> dict[str, int]:
        most = {"parameter": 4 * sum(parameter.numel() for parameter in self._frozen()), "gradient": 0}
        for master, parameters in zip(self.masters(), self.zero.bit16_groups, strict=True):
            elements = sum(parameter.numel() for parameter in parameters)
            share = 8 * -(-elements // (2 * self.data_size))  # fp32, in pairs: DeepSpeed aligns partitions to two elements
            most["parameter"] += share * self.data_size
            # Stage 2 keeps a gradient whole where the border of the partition cuts it: at most one at either end.
            cut = share + 8 * max(parameter.numel() for parameter in parameters)
            most["gradient"] += cut if self.zero.partition_gradients else 4 * elements
            if self.zero.cpu_offload:
                most["gradient"] += share  # beside what accumulates, what the update reads
            for kind in ("master", *self.zero.optimizer.state[master]):
                if not is_count(kind):
                    most[kind] = most.get(kind, 0) + share
        return most
