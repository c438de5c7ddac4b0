"""The ranks of a run: collective operations, and how errors on a single rank are handled."""

import contextlib
import datetime
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from mt.errors import (
    ConfigError,
    DivergedError,
    Interrupted,
    MTError,
    RankError,
    RankLostError,
    exit_code,
)
from mt.runtime.presence import START_TIMEOUT, Presence, die_with_parent
from mt.runtime.shards import save_shards, unsharded

T = TypeVar("T")
Engine = Literal["ddp", "fsdp"]
# Timeout in seconds for commands that only translate. It is long, because their ranks rarely wait
# for each other.
TRANSLATION_TIMEOUT = 3600.0
# NCCL waits this many seconds longer than collectives on the CPU, because an error on the CPU can
# be reported, but NCCL just aborts the process. A process waits for its own GPU longer than for
# collectives on the CPU, but not as long as NCCL.
GPU_GRACE = 60.0


class World:
    """The processes of a run, and the rank of this process. By default, a single process."""

    def __init__(
        self,
        rank: int = 0,
        size: int = 1,
        *,
        local_rank: int = 0,
        local_size: int = 1,
        attempt: int = 0,
        timeout: float = 300.0,
        store: Any = None,
        is_launched: bool = False,
    ) -> None:
        """`local_rank` and `local_size` count the ranks on this machine only.

        `attempt` is how many times the launcher has restarted the run. A rank that does not
        respond for `timeout` seconds counts as lost.
        """
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self.attempt, self.timeout = attempt, timeout
        # Whether a launcher started this process. A launcher may forward a signal to this process
        # that the process has already received directly.
        self.is_launched = is_launched or size > 1
        self.presence = Presence(store, rank, size, timeout)
        self._num_broadcasts = 0
        # The last error of this rank that has been sent to all other ranks.
        self._shared_error: BaseException | None = None
        self._cpu_group: Any = None  # for collectives on the CPU; None means the default group

    @property
    def is_alone(self) -> bool:
        """Whether this is the only process of the run."""
        return self.size == 1

    @property
    def is_rank0(self) -> bool:
        """Whether this is rank 0, the process that writes files and prints messages."""
        return self.rank == 0

    @property
    def gpu_timeout(self) -> float | None:
        """How many seconds to wait for this rank's GPU, which may wait for other ranks, or None."""
        return None if self.is_alone else self.timeout + GPU_GRACE / 2

    def device_for_rank(self, device: str) -> str:
        """Return the device of this rank, given the device set by the user.

        If there are several ranks, `auto` and `cuda` become `cuda:N`, where N is the local rank.
        """
        if self.is_alone or device not in ("auto", "cuda") or not torch.cuda.is_available():
            return device
        return f"cuda:{self.local_rank}"

    def threads_per_rank(self, threads: int | None) -> int | None:
        """Return this rank's share of the CPU threads set by the user for each machine."""
        return threads if threads is None else max(1, threads // self.local_size)

    # The model and its gradients.

    def wrap(
        self, module: nn.Module, engine: Engine, blocks: Sequence[nn.Module], device: torch.device
    ) -> nn.Module:
        """Move `module` to `device`, and make its gradients the mean over all ranks.

        With `fsdp`, parameters and gradients are sharded, and FSDP2 gathers the parameters of one
        of `blocks` at a time. The blocks are also moved to the device one at a time, so the whole
        `module`, which is built on the CPU, is never on the device.
        """
        if self.is_alone:
            return module.to(device)
        if engine == "ddp":
            from torch.nn.parallel import DistributedDataParallel

            return DistributedDataParallel(
                module.to(device), gradient_as_bucket_view=True, forward_sync_buffers=False
            )
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(device.type, (self.size,))
        for block in (*blocks, module):
            fully_shard(block, mesh=mesh)
        return module

    def gradient_sync(self, module: nn.Module, is_last: bool) -> AbstractContextManager[Any]:
        """Return the context for the forward and backward pass of a micro-batch.

        DDP all-reduces the gradients only in the last micro-batch of an update.
        """
        no_sync = getattr(module, "no_sync", None)
        return nullcontext() if no_sync is None or is_last else no_sync()

    def all_reduce_sum(self, numbers: Tensor) -> Tensor:
        """Sum a tensor over all ranks, in place, and return it."""
        if not self.is_alone:
            torch.distributed.all_reduce(numbers)
        return numbers

    # Collectives between CPUs.

    def all_reduce_max(self, value: int) -> int:
        """Return the maximum of `value` over all ranks."""
        if self.is_alone:
            return value
        number = torch.tensor(value)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self._cpu_group)
        return int(number)

    def map_sharded(
        self, work: Callable[[Sequence[Any]], Sequence[T]], items: Sequence[Any]
    ) -> list[T]:
        """Apply `work` to `items`, divided among the ranks. Returns all results on every rank.

        Rank r calls `work` once, with the items r, r + size, r + 2 * size, and so on. `work` must
        return one JSON value per item. The results are in the order of `items`. If
        `work` raises an error on a rank, that rank raises the error, and the others `RankError`.
        """
        if self.is_alone:
            return list(work(items))
        try:
            values = list(work(items[self.rank :: self.size]))
        except Exception as error:
            self._all_gather_json(_describe(error))  # the other ranks are waiting for an answer
            self._shared_error = error
            raise
        answers = self._all_gather_json({"values": values})
        for rank, answer in enumerate(answers):
            _raise_if_error(answer, f"rank {rank}: ")
        # Item i is the item i // size of rank i % size.
        return [answers[i % self.size]["values"][i // self.size] for i in range(len(items))]

    def _all_gather_json(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Send `value` to all ranks as JSON, and return the values of all ranks."""
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        torch.distributed.all_gather(lengths, torch.tensor([len(text)]), group=self._cpu_group)
        longest = int(max(lengths))
        texts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        padded = nn.functional.pad(text, (0, longest - len(text)))
        torch.distributed.all_gather(texts, padded, group=self._cpu_group)
        return [
            json.loads(text[: int(length)].numpy().tobytes())
            for text, length in zip(texts, lengths, strict=True)
        ]

    def broadcast_from_rank0(self, work: Callable[[], T]) -> T:
        """Call `work` on rank 0 only, and return its result, a JSON value, on all ranks.

        There is no time limit: the other ranks wait as long as rank 0 is alive. If `work` raises an
        error, rank 0 raises the error, and the other ranks raise `RankError`.
        """
        if self.is_alone:
            return work()
        self._num_broadcasts += 1
        key = f"broadcast/{self._num_broadcasts}"
        if self.is_rank0:
            return self._run_and_publish(work, key)
        answer = self.presence.wait_for_rank0_or_kill_it(key)
        _raise_if_error(answer)
        return answer["value"]

    def _run_and_publish(self, work: Callable[[], T], key: str) -> T:
        """Call `work`, and publish its result or its error to the other ranks."""
        try:
            with self.presence.heartbeat(key):
                value = work()
        except BaseException as error:
            self._shared_error = error
            self.presence.publish_answer(key, _describe(error))
            raise
        self.presence.publish_answer(key, {"value": value})
        return value

    # Checkpoints.

    def gather_to_rank0(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return whole tensors on rank 0, and no tensors on the other ranks.

        Sharded tensors are gathered one at a time and moved to the CPU of rank 0.
        """
        whole = {}
        for name, tensor in tensors.items():
            full = unsharded(tensor)
            if self.is_rank0:
                whole[name] = full if full is tensor else full.cpu()
        return whole

    def save_shards(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Write tensors to `folder`. All ranks call this, and each rank writes its own shards.

        Raises `CheckpointError` on all ranks if one of them fails.
        """
        try:
            save_shards(tensors, folder, self._cpu_group)
        except MTError as error:
            self._shared_error = error
            raise

    # Start and end.

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Connect to the other ranks while the block runs, and wait for them at the end.

        If the block raises an error that all ranks know about, only one rank reports it.
        """
        self.presence.register()
        self._init_process_group()
        try:
            yield
        except BaseException as error:
            is_known = self._is_known_to_all(error)
            if is_known:
                self.presence.leave_together()
            if isinstance(error, MTError):
                error.is_reported = not self.presence.is_reporter and (
                    is_known or isinstance(error, RankLostError)
                )
            raise
        self.presence.leave_together()
        torch.distributed.destroy_process_group()

    def _init_process_group(self) -> None:
        has_gpu = torch.cuda.is_available()
        backend, grace = ("cpu:gloo,cuda:nccl", GPU_GRACE) if has_gpu else ("gloo", 0.0)
        try:
            torch.distributed.init_process_group(
                backend,
                timeout=datetime.timedelta(seconds=self.timeout + grace),
                store=self.presence.store,
                rank=self.rank,
                world_size=self.size,
            )
            if has_gpu:
                timeout = datetime.timedelta(seconds=self.timeout)
                self._cpu_group = torch.distributed.new_group(backend="gloo", timeout=timeout)
        except RuntimeError as error:
            raise RankLostError(f"the ranks could not be connected: {error}") from error

    def _is_known_to_all(self, error: BaseException | None) -> bool:
        """Whether every rank raises `error`, or a `RankError` for it."""
        if error is None:
            return False
        return (
            error is self._shared_error
            or isinstance(error, DivergedError | Interrupted | RankError)
            or self._is_known_to_all(error.__cause__)
        )


ALONE = World()


@contextlib.contextmanager
def join_world(timeout: float) -> Iterator[World]:
    """Connect the ranks described by the environment variables of `torchrun`; yield the world.

    Without these variables, the world is just this process. Raises `ConfigError` if only some of
    them are set.
    """
    is_launched = "TORCHELASTIC_RUN_ID" in os.environ
    if is_launched:
        die_with_parent(os.getppid())
    attempt = _int_variable("TORCHELASTIC_RESTART_COUNT", 0)
    if _int_variable("WORLD_SIZE", 1) == 1:
        yield World(attempt=attempt, is_launched=is_launched)
        return
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(
            rendezvous("env://", timeout=datetime.timedelta(seconds=START_TIMEOUT))
        )
    except ValueError as error:
        raise ConfigError(
            f"torchrun's variable WORLD_SIZE is set, but other variables are missing: {error}"
        ) from error
    world = World(
        rank,
        size,
        local_rank=_int_variable("LOCAL_RANK", 0),
        local_size=_int_variable("LOCAL_WORLD_SIZE", 1),
        attempt=attempt,
        timeout=timeout,
        store=PrefixStore("mt", store),
        is_launched=is_launched,
    )
    with world.connected():
        yield world


def _int_variable(name: str, default: int) -> int:
    """Return an environment variable as a number."""
    return int(os.environ.get(name, default))


def _describe(error: BaseException) -> dict[str, Any]:
    """Return `error` as a JSON object, which `_raise_if_error` turns into a `RankError`."""
    return {
        "error": str(error) or type(error).__name__,
        "exit_code": exit_code(error),
        "kind": type(error).__name__,
    }


def _raise_if_error(answer: Mapping[str, Any], prefix: str = "") -> None:
    """Raise a `RankError` if another rank answered with an error instead of a result."""
    if "error" in answer:
        raise RankError(prefix + answer["error"], answer["exit_code"], answer["kind"])
