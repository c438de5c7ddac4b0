"""A world of ranks: what each does, what they add up, and what one tells the others."""

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
from mt.runtime.presence import START_TIMEOUT, Presence, die_with
from mt.runtime.shards import save_shards, unsharded

T = TypeVar("T")
Engine = Literal["ddp", "fsdp"]
# seconds without an answer, where ranks translate for long before they have anything to say
PATIENCE = 3600.0
# Seconds by which NCCL, which can only abort the process, waits longer than the hosts, which can
# say for whom. A host waits for its own GPU half as long.
GPU_GRACE = 60.0


class World:
    """The processes of a run and this one's place among them; by default a process that is alone."""

    def __init__(
        self, rank: int = 0, size: int = 1, *, local_rank: int = 0, local_size: int = 1, attempt: int = 0, timeout: float = 300.0,
        store: Any = None, is_launched: bool = False,
    ) -> None:  # fmt: skip
        """`attempt`: how many times the launcher has started anew. `timeout`: seconds without an
        answer after which a rank is lost.
        """
        self.rank, self.size, self.local_rank, self.local_size = rank, size, local_rank, local_size
        self.attempt, self.timeout = attempt, timeout
        self.is_launched = (
            is_launched or size > 1
        )  # by something that may pass on signals which this process has had
        self.presence = Presence(store, rank, size, timeout)
        self._calls = 0
        self._known: BaseException | None = None  # what was raised here and told to all
        self._hosts: Any = (
            None  # the group of what the hosts tell each other; None is the default group
        )

    @property
    def is_alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    @property
    def is_rank0(self) -> bool:
        """Whether this process writes files and talks to the user."""
        return self.rank == 0

    @property
    def gpu_patience(self) -> float | None:
        """Seconds to wait for this rank's GPU, which may wait for others; None: without end."""
        return None if self.is_alone else self.timeout + GPU_GRACE / 2

    def device_for_rank(self, device: str) -> str:
        """`device` of a configuration for this rank: the GPU of its number on its machine, where
        GPUs are meant.
        """
        if self.is_alone or device not in ("auto", "cuda") or not torch.cuda.is_available():
            return device
        return f"cuda:{self.local_rank}"

    def threads_per_rank(self, threads: int | None) -> int | None:
        """This rank's part of a machine's CPU `threads`."""
        return threads if threads is None else max(1, threads // self.local_size)

    # The model and its gradients.

    def wrap(
        self, module: nn.Module, engine: Engine, blocks: Sequence[nn.Module], device: torch.device
    ) -> nn.Module:
        """`module` on `device`; its gradients are from here on the mean over all ranks.

        With `fsdp` they and the parameters are shared out. `blocks` are what FSDP2 brings together
        at a time. It also moves them to the device one at a time, so `module`, built on the CPU, is
        never there whole.
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
        """The context of a micro-batch: DDP exchanges gradients in the last of an update only."""
        no_sync = getattr(module, "no_sync", None)
        return nullcontext() if no_sync is None or is_last else no_sync()

    def all_reduce_sum(self, numbers: Tensor) -> Tensor:
        """The sum of a small tensor over all ranks, in its place."""
        if not self.is_alone:
            torch.distributed.all_reduce(numbers)
        return numbers

    # What the hosts tell each other.

    def all_reduce_max(self, value: int) -> int:
        """The highest `value` of all ranks."""
        if self.is_alone:
            return value
        number = torch.tensor(value)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, group=self._hosts)
        return int(number)

    def map_sharded(
        self, work: Callable[[Sequence[Any]], Sequence[T]], items: Sequence[Any]
    ) -> list[T]:
        """What `work` makes of `items`, one for one and as JSON holds it, in order and on all
        ranks; each works on its part.

        Raises what `work` raises here, and `RankError` for what it raises elsewhere.
        """
        if self.is_alone:
            return list(work(items))
        failed: BaseException | None = None
        answer: dict[str, Any]
        try:
            answer = {"values": list(work(items[self.rank :: self.size]))}
        except Exception as error:
            failed, answer = error, _described(error)
        answers = self._gathered(json.dumps(answer))
        if failed is not None:
            self._known = failed
            raise failed
        for rank, other in enumerate(answers):
            _raise_told(other, f"rank {rank}: ")
        return [answers[i % self.size]["values"][i // self.size] for i in range(len(items))]

    def _gathered(self, text: str) -> list[dict[str, Any]]:
        mine = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        torch.distributed.all_gather(lengths, torch.tensor([len(mine)]), group=self._hosts)
        longest = max(int(length) for length in lengths)
        texts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
        torch.distributed.all_gather(
            texts, nn.functional.pad(mine, (0, longest - len(mine))), group=self._hosts
        )
        return [
            json.loads(text[: int(length)].numpy().tobytes())
            for text, length in zip(texts, lengths, strict=True)
        ]

    def broadcast_from_rank0(self, work: Callable[[], T]) -> T:
        """What `work` gives on the first rank, as JSON holds it, on all ranks; it may take any time
        while that rank lives.

        Raises what it raises there, and on the other ranks `RankError`.
        """
        if self.is_alone:
            return work()
        self._calls += 1
        key = f"first/{self._calls}"
        if not self.is_rank0:
            answer = self.presence.answer(key)
            _raise_told(answer)
            value: T = answer["value"]
            return value
        try:
            with self.presence.signs_of_life(key):
                value = work()
        except BaseException as error:
            self._known = error
            self.presence.tell(key, _described(error))
            raise
        self.presence.tell(key, {"value": value})
        return value

    # Checkpoints.

    def gather_to_rank0(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors on the first rank; what is shared out comes to its CPU, and the other ranks
        get nothing.
        """
        whole = {}
        for name, tensor in tensors.items():
            full = unsharded(tensor)
            if self.is_rank0:
                whole[name] = full if full is tensor else full.cpu()
        return whole

    def save_shards(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """`save_shards` of all ranks."""
        try:
            save_shards(tensors, folder, self._hosts)
        except MTError as error:
            self._known = error
            raise

    # Beginning and end.

    @contextlib.contextmanager
    def member(self) -> Iterator[None]:
        """Take part while the block runs. Of what all ranks know, only the first tells the user."""
        self.presence.introduce()
        self._join()
        try:
            yield
        except BaseException as error:
            is_known = self._is_known_to_all(error)
            if is_known:
                self.presence.leave()
            if isinstance(error, MTError):
                error.is_reported = not self.presence.speaks and (
                    is_known or isinstance(error, RankLostError)
                )
            raise
        self.presence.leave()
        torch.distributed.destroy_process_group()

    def _join(self) -> None:
        timeout = datetime.timedelta(seconds=self.timeout)
        options: dict[str, Any] = {
            "store": self.presence.store,
            "rank": self.rank,
            "world_size": self.size,
        }
        try:
            if torch.cuda.is_available():
                patient = timeout + datetime.timedelta(seconds=GPU_GRACE)
                torch.distributed.init_process_group(
                    "cpu:gloo,cuda:nccl", timeout=patient, **options
                )
                self._hosts = torch.distributed.new_group(backend="gloo", timeout=timeout)
            else:
                torch.distributed.init_process_group("gloo", timeout=timeout, **options)
        except RuntimeError as error:
            raise RankLostError(f"the ranks could not be connected: {error}") from error

    def _is_known_to_all(self, error: BaseException | None) -> bool:
        if error is None:
            return False
        return (
            error is self._known
            or isinstance(error, DivergedError | Interrupted | RankError)
            or self._is_known_to_all(error.__cause__)
        )


ALONE = World()


@contextlib.contextmanager
def joined(timeout: float) -> Iterator[World]:
    """The world that the environment variables of `torchrun` describe; without them, this process
    alone.

    Raises `ConfigError` where some of them are missing.
    """
    is_launched = "TORCHELASTIC_RUN_ID" in os.environ
    if is_launched:
        die_with(os.getppid())
    attempt = _variable("TORCHELASTIC_RESTART_COUNT", 0)
    if _variable("WORLD_SIZE", 1) == 1:
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
            f"WORLD_SIZE is set in the environment as by torchrun, but not all that belongs to it: {error}"
        ) from error
    world = World(
        rank, size, local_rank=_variable("LOCAL_RANK", 0), local_size=_variable("LOCAL_WORLD_SIZE", 1), attempt=attempt, timeout=timeout,
        store=PrefixStore("mt", store), is_launched=is_launched,
    )  # fmt: skip
    with world.member():
        yield world


def _variable(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def _described(error: BaseException) -> dict[str, Any]:
    return {
        "error": str(error) or type(error).__name__,
        "exit_code": exit_code(error),
        "kind": type(error).__name__,
    }


def _raise_told(answer: Mapping[str, Any], where: str = "") -> None:
    if "error" in answer:
        raise RankError(where + answer["error"], answer["exit_code"], answer["kind"])
