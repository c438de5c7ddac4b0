"""Collectives of `World`, and what happens if a rank raises an error, dies or hangs."""

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from mt.errors import ConfigError, DataError, RankError, RankLostError
from mt.runtime import presence
from mt.runtime.world import World, join_world
from mt.train.gradients import wait_for_gpu
from mt.train.stopping import SignalStop
from tests.runtime.ranks import RankFailedError, on_ranks


class NeverDone:
    """A fake CUDA event that is never reached."""

    def query(self) -> bool:
        return False


def lost_rank_message(world: World, error: BaseException) -> str:
    """Kill the ranks that do not respond, as `mt train` does, and return the error message."""
    assert world.presence.means_lost_rank(error)
    return world.presence.kill_lost_ranks(error)


def test_sums_and_maxima_are_taken_over_all_ranks() -> None:
    def work(world: World) -> Any:
        highest = world.all_reduce_max(15 * (world.rank == 1))
        return world.all_reduce_sum(torch.tensor([1.0, world.rank])).tolist(), highest

    assert on_ranks(3, work) == [([3.0, 3.0], 15)] * 3
    assert work(World()) == ([1.0, 0.0], 0)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_map_sharded_equals_a_plain_map_in_order_on_every_rank(count: int) -> None:
    def work(world: World) -> Any:
        return world.map_sharded(
            lambda items: [[item * item, world.rank] for item in items], range(count)
        )

    assert on_ranks(3, work) == [[[i * i, i % 3] for i in range(count)]] * 3
    assert work(World()) == [[i * i, 0] for i in range(count)]


def test_an_error_in_map_sharded_is_raised_on_all_ranks_and_names_the_rank() -> None:
    def work(world: World) -> Any:
        def fails_on_one(items: Sequence[int]) -> Sequence[int]:
            if world.rank == 1:
                raise DataError("line 7 is odd")
            return items

        try:
            world.map_sharded(fails_on_one, range(4))
        except (DataError, RankError) as error:
            return type(error).__name__, str(error), error.exit_code, getattr(error, "kind", "")

    elsewhere = ("RankError", "rank 1: line 7 is odd", 2, "DataError")
    assert on_ranks(3, work) == [
        elsewhere,
        ("DataError", "line 7 is odd", 2, ""),
        elsewhere,
    ]


def test_all_ranks_get_the_result_or_the_error_of_rank_0() -> None:
    def work(world: World) -> Any:
        values = [
            world.broadcast_from_rank0(lambda: {"pid": os.getpid(), "text": "ä\u2028"})
            for _ in range(3)
        ]
        try:
            world.broadcast_from_rank0(lambda: [].pop())
        except (IndexError, RankError) as error:
            return values, type(error).__name__, str(error)

    first, *others = on_ranks(3, work)
    assert first[1:] == ("IndexError", "pop from empty list")
    assert [other[0] for other in others] == [first[0]] * 2
    assert [other[1:] for other in others] == [("RankError", "pop from empty list")] * 2


def test_work_of_rank_0_may_take_longer_than_the_timeout() -> None:
    def work(world: World) -> Any:
        def slow() -> int:
            time.sleep(2.5)
            return 7

        return world.broadcast_from_rank0(slow)

    assert on_ranks(2, work, timeout=1.0) == [7, 7]


@pytest.mark.parametrize(("where", "silent"), [("broadcast", 0), ("sum", 0), ("sum", 2)])
def test_a_rank_that_stops_responding_is_named_and_killed(where: str, silent: int) -> None:
    def work(world: World) -> None:
        world.all_reduce_sum(torch.ones(1))

        def stop() -> None:
            if world.rank == silent:
                os.kill(os.getpid(), signal.SIGSTOP)

        try:
            if where == "broadcast":
                world.broadcast_from_rank0(stop)
            else:
                stop()
                world.all_reduce_sum(torch.ones(1))
        except RuntimeError as error:
            raise RankLostError(lost_rank_message(world, error)) from error

    began = time.monotonic()
    with pytest.raises(RankFailedError) as failed:
        on_ranks(3, work, timeout=2.0)
    assert time.monotonic() - began < 2 + 10
    assert f"rank {silent}: exit {-signal.SIGKILL}" in str(failed.value)
    assert f"no answer for 2 s from rank {silent} (" in str(failed.value)
    others = {0, 1, 2} - {silent}
    assert not [rank for rank in others if f"from rank {rank} (" in str(failed.value)]


@pytest.mark.parametrize("where", ["collective", "gpu"])
def test_a_rank_that_keeps_a_gpu_waiting_is_named(where: str) -> None:
    """The timeout can occur in a collective on the CPU, or while waiting for a GPU event."""

    def work(world: World) -> None:
        stop = SignalStop(world)
        stop.share_signal()
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        try:
            if where == "collective":
                stop.share_signal()
            wait_for_gpu(NeverDone(), patience=2.5)  # type: ignore[arg-type]
        except RuntimeError as error:
            message = lost_rank_message(world, error)
            missed_by = "GPU" if "GPU" in str(error) else "ranks"
            raise RankLostError(f"{message}; missed by the {missed_by}") from error

    with pytest.raises(RankFailedError) as failed:
        on_ranks(3, work, timeout=2.0)
    assert f"rank 1: exit {-signal.SIGKILL}" in str(failed.value)
    missed = f"(train.timeout); missed by the {'GPU' if where == 'gpu' else 'ranks'}\n"
    assert str(failed.value).count("no answer for 2 s from rank 1 (") == 2
    assert str(failed.value).count(missed) == 2
    assert "from rank 0 (" not in str(failed.value)
    assert "from rank 2 (" not in str(failed.value)


def test_the_gpu_timeout_is_longer_than_that_of_cpu_collectives() -> None:
    assert World().gpu_timeout is None
    assert World(0, 2, timeout=10.0).gpu_timeout == 40.0


def test_if_a_rank_dies_the_others_end_at_once() -> None:
    def work(world: World) -> None:
        world.all_reduce_sum(torch.ones(1))
        if world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        try:
            world.all_reduce_sum(torch.ones(1))
        except RuntimeError as error:
            raise RankLostError(lost_rank_message(world, error)) from error

    began = time.monotonic()
    with pytest.raises(RankFailedError, match="another rank has ended"):
        on_ranks(2, work, timeout=60.0)
    assert time.monotonic() - began < 10


def test_entries_of_dead_ranks_in_the_store_are_ignored() -> None:
    """A launcher that restarts its ranks keeps the store from the first attempt."""
    server = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    port = server.port

    def client() -> TCPStore:
        return TCPStore("127.0.0.1", port, is_master=False)

    def dies(world: World) -> None:
        world.broadcast_from_rank0(lambda: "from a dead rank")
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RankFailedError):
        on_ranks(2, dies, store=client)
    for number in range(3):
        values = on_ranks(
            2,
            lambda world: (
                world.broadcast_from_rank0(lambda: number),  # noqa: B023
                len(world.presence.ranks),
            ),
            store=client,
        )
        assert values == [(number, 2)] * 2


def test_other_errors_do_not_mean_a_lost_rank() -> None:
    two_ranks = presence.Presence(None, 0, 2, 1.0)
    assert two_ranks.means_lost_rank(RuntimeError("Connection closed by peer"))
    assert not two_ranks.means_lost_rank(RuntimeError("mat1 and mat2 cannot be multiplied"))
    assert not two_ranks.means_lost_rank(ValueError("Connection closed by peer"))
    assert not World().presence.means_lost_rank(RuntimeError("Connection closed by peer"))


def test_an_incomplete_environment_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="RANK expected"), join_world(1.0):
        pytest.fail("a world was made from half the variables")


def test_each_rank_uses_the_gpu_of_its_local_rank_and_its_share_of_the_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    third = World(11, 16, local_rank=3, local_size=8)
    assert [third.threads_per_rank(count) for count in (16, 4, None)] == [2, 1, None]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert third.device_for_rank("auto") == "auto"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert [third.device_for_rank(device) for device in ("auto", "cuda", "cuda:1", "cpu")] == [
        "cuda:3",
        "cuda:3",
        "cuda:1",
        "cpu",
    ]
    assert World().device_for_rank("auto") == "auto"
