"""Devices, memory, worker processes, and runs on several ranks.

Several ranks can train or translate together with PyTorch's torchrun, DistributedDataParallel (DDP)
and FSDP2:

  1. `torchrun`, or `mt train --nproc`, starts the processes and passes each one its rank in
     environment variables, which `join_world` reads.
  2. DDP or FSDP2 averages the gradients over the ranks. Sums, signals and short texts are exchanged
     by methods of `World` (world.py).
  3. Work that is done only once, such as preparing data, is done by rank 0 while the other ranks
     watch its heartbeat (`World.broadcast_from_rank0`).
  4. A checkpoint is written by rank 0, or by all ranks if the model is sharded. Any number of ranks
     can read it (shards.py).
  5. If a rank is killed or stops responding, the other ranks find out which one, report it, and
     exit (presence.py). The launcher then restarts all ranks.

A single process skips all of this.
"""
