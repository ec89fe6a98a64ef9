"""Parameters, gradients and optimizer states sharded over all processes (FSDP2), for models too large for one device.

Each block of a network is gathered when its forward or backward pass begins and freed when it has ended; the rest of a
network is one more such unit. What a method holds besides its networks (a logit scale) is one number: every process
keeps it, and its gradient is averaged as DDP would.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from lit_ssl.checkpoint import check_whole
from lit_ssl.distributed import average_
from lit_ssl.networks.follower import Follower
from lit_ssl.networks.masked import encode_visible, is_vit

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["FullyShardedStrategy", "shard"]


class FullyShardedStrategy(ModelParallelStrategy):
    """Lightning's ``ModelParallelStrategy`` over all processes of a run, with checkpoints of one file.

    Such a file loads in a run on any number of processes, with this strategy or another.

    Args:
        process_group_backend: ``nccl``, ``gloo``, ...; by default the device's own.
        timeout: of a collective call.
    """

    def __init__(
        self, process_group_backend: str | None = None, timeout: timedelta | None = default_pg_timeout
    ) -> None:
        super().__init__(
            data_parallel_size="auto",  # known when the processes are
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """As ``ModelParallelStrategy``, after a file's checksum has been compared; never runs code from the file."""
        if Path(checkpoint_path).is_file():
            check_whole(Path(checkpoint_path))
        return super().load_checkpoint(checkpoint_path, weights_only=True)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def shard(method: nn.Module, mesh: DeviceMesh) -> None:
    """Shard the networks of a method, its children, over the data-parallel dimension of ``mesh``, in place.

    A second call does nothing.

    Raises:
        MisconfigurationException: the mesh has a tensor-parallel dimension of more than one process, the method holds
            a parameter beside its networks that is more than one number, or a copy follows in a precision below
            float32, whose average in float32 is not sharded.
    """
    if any(isinstance(child, FSDPModule) for child in method.modules()):
        return
    if mesh["tensor_parallel"].size() > 1:
        raise MisconfigurationException(
            f"tensor_parallel_size must be 1, got {mesh['tensor_parallel'].size()}: networks are sharded over "
            "data-parallel processes alone (the layer trainer/fsdp does so)"
        )
    for name, parameter in method.named_parameters(recurse=False):
        if parameter.ndim:  # optimizers take whole and sharded parameters side by side where the whole ones are numbers
            raise MisconfigurationException(
                f"{type(method).__name__}.{name}, a parameter of shape {tuple(parameter.shape)} beside the networks, "
                "cannot be sharded: put it into a module"
            )
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_average_gradient)
    if any(isinstance(child, Follower) and child.masters is not None for child in method.modules()):
        raise MisconfigurationException(
            f"{type(method).__name__} follows its own weights slowly, which takes float32, and that is not sharded: "
            "take --trainer.precision bf16-mixed in place of bf16-true"
        )
    for network in method.children():
        _shard_network(network, mesh["data_parallel"])


def _shard_network(network: nn.Module, mesh: DeviceMesh) -> None:
    if next(network.parameters(), None) is None:
        return
    # Freed behind every forward pass, the outermost unit's too: a copy that follows another network (MoCo's) has no
    # backward pass that would do so, and a probe's forward pass has none either.
    for name, blocks in network.named_modules():
        if name.rpartition(".")[2] == "blocks" and isinstance(blocks, (nn.Sequential, nn.ModuleList)):
            for block in blocks:
                fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)
    if is_vit(network):  # a masked pass does not go through the ViT's forward, which is what gathers its parameters
        network.encode_visible = MethodType(encode_visible, network)  # type: ignore[assignment]
        register_fsdp_forward_method(network, "encode_visible")


def _average_gradient(parameter: Tensor) -> None:
    # Once for every backward pass of an accumulated step: a mean of means of what is alike already stays as it is.
    assert parameter.grad is not None
    average_(parameter.grad)
