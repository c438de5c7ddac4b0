"""Several processes that train, or translate, as one. The engine is PyTorch's own: torchrun,
DistributedDataParallel, FSDP2.

  1. `torchrun`, or `mt train --nproc`, starts the processes and tells each its rank in its
     environment: `joined` reads it.
  2. DistributedDataParallel or FSDP2 keeps the gradients one; sums, signals and texts go through
     small calls of `World` (world.py).
  3. What must happen once, such as preparing data, the first rank does, while the others watch its
     signs of life (`World.first`).
  4. Checkpoints are read by any number of ranks, and written by all where they have shared out the
     model (shards.py).
  5. When a rank is killed or falls silent, the others find out which, say so, and end
     (presence.py); the launcher starts all anew.

All of it does nothing, and costs nothing, where a process is alone.
"""
