"""Run a function on several gloo processes, as ranks of one job, and collect what each returns."""

import multiprocessing
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Ranks are forked from a process that has imported what they need and done nothing else: a start takes a fraction of
# a second, where a fresh interpreter would spend many on imports.
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
multiprocessing.set_forkserver_preload(["pytest", "hypothesis", "lit_ssl.methods", "lit_ssl.datamodules"])


def _rank(rank, fn, world, folder, args):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    try:
        assert dist.get_world_size() == world
        torch.save(fn(rank, world, *args), Path(folder) / f"rank{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def run_ranks(fn, world, *args):
    """``[fn(rank, world, *args) for each rank]``; ``fn`` is a module-level function."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_rank, (fn, world, folder, args), nprocs=world, start_method=START)
        return [torch.load(Path(folder) / f"rank{r}.pt", weights_only=True) for r in range(world)]
