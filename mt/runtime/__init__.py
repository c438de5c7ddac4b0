"""Several processes that train, or translate, as one. The engine is PyTorch's own: torchrun, DistributedDataParallel, FSDP2.

  1. `torchrun`, or `mt train --nproc`, starts the processes and tells each its rank in its environment: `joined` reads it.
  2. DistributedDataParallel or FSDP2 keeps the gradients one; sums, signals and texts go through small calls of `World` (world.py).
  3. What must happen once, such as preparing data, the first rank does, while the others watch its signs of life (`World.first`).
  4. Checkpoints are read by any number of ranks, and written by all where they have shared out the model (shards.py).
  5. When a rank is killed or falls silent, the others find out which, say so, and end (presence.py); the launcher starts all anew.

All of it does nothing, and costs nothing, where a process is alone. The names below load on first use: template.py must start a
process before this one has loaded PyTorch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mt.runtime.shards import is_sharded, load_shards, own_shard, unsharded
    from mt.runtime.world import ALONE, PATIENCE, World, joined

__all__ = [
    "ALONE",
    "PATIENCE",
    "World",
    "is_sharded",
    "joined",
    "load_shards",
    "own_shard",
    "unsharded",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mt.runtime import shards, world

    return getattr(world if hasattr(world, name) else shards, name)
