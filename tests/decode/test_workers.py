"""Processes that share the work: order, errors, deaths; and the same translations as one process gives."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from mt.decode.workers import Workers
from mt.device import Compute
from mt.errors import ConfigError, MTError
from tests.conftest import ROOT

CPU = Compute(torch.device("cpu"), torch.float32)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


def test_results_come_in_the_order_of_the_items_from_several_processes() -> None:
    def work(item: int) -> tuple[int, int]:
        time.sleep(0.05 if item % 3 == 0 else 0.0)
        return item, os.getpid()

    found = list(Workers(2, 1).map(work, range(12)))
    assert [item for item, _ in found] == list(range(12))
    assert len({pid for _, pid in found}) == 2
    assert os.getpid() not in {pid for _, pid in found}


@pytest.mark.parametrize(("count", "items"), [(1, 5), (4, 0)])
def test_one_worker_or_no_item_needs_no_other_process(count: int, items: int) -> None:
    assert list(Workers(count, 1).map(lambda item: (item, os.getpid()), range(items))) == [(i, os.getpid()) for i in range(items)]


def test_the_processes_share_the_threads_and_fewer_have_more() -> None:
    assert list(Workers(2, 6).map(lambda item: torch.get_num_threads(), range(4))) == [3] * 4
    assert list(Workers(4, 6).map(lambda item: torch.get_num_threads(), range(1))) == [6]
    assert list(Workers(4, 1).map(lambda item: torch.get_num_threads(), range(4))) == [1] * 4


def test_a_process_of_several_threads_computes() -> None:
    a = torch.randn(512, 512)
    expected = float((a @ a).sum())
    found = list(Workers(2, 4).map(lambda item: float((a @ a).sum()), range(4)))
    assert found == pytest.approx([expected] * 4, rel=1e-2, abs=1.0)


def test_processes_of_several_threads_compute_after_this_one_did() -> None:
    """A fork takes no threads along, and OpenMP in the child waits for those of its parent for ever, if it is let."""
    code = (
        "import torch; from mt.decode.workers import Workers\n"
        "torch.set_num_threads(2); a = torch.randn(1000, 1000); before = a.exp().sum().item(); torch.set_num_threads(1)\n"
        "print(all(abs(x - before) < 100 for x in Workers(2, 4).map(lambda i: a.exp().sum().item(), range(4))))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert result.stdout == "True\n", result.stderr


def test_an_error_tells_where_in_the_worker_it_came_from() -> None:
    def work(item: int) -> int:
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing") as caught:
        list(Workers(2, 1).map(work, range(2)))
    assert "in work\n" in caught.value.__notes__[0]


def test_what_the_work_raises_arrives_and_no_process_is_left() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ConfigError("three is too much")
        time.sleep(0.01)
        return os.getpid()

    found = []
    with pytest.raises(ConfigError, match="three is too much"):
        found.extend(Workers(2, 1).map(work, range(100)))
    assert_gone(Workers(2, 1).map(lambda item: os.getpid(), range(2)))


def assert_gone(pids: Iterator[int]) -> None:
    """No process of those that answered runs on."""
    for pid in set(pids):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.05)
        else:
            pytest.fail(f"process {pid} still runs")


def test_who_stops_listening_ends_the_processes() -> None:
    def work(item: int) -> int:
        time.sleep(0.0 if item < 2 else 60)
        return os.getpid()

    results = Workers(2, 1).map(work, range(10))
    pids = [next(results)]
    began = time.monotonic()
    results.close()  # type: ignore[attr-defined]
    assert_gone(iter(pids))
    assert time.monotonic() - began < 10


def test_a_killed_process_is_an_error_that_says_what_may_help() -> None:
    def work(item: int) -> int:
        if item == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return item

    with pytest.raises(MTError, match=r"worker process was killed .*--workers"):
        list(Workers(2, 1).map(work, range(6)))


def test_threads_are_shared_out_among_workers() -> None:
    torch.set_num_threads(4)
    assert Workers.choose(1, CPU) == Workers(1, 4)
    assert torch.get_num_threads() == 4
    assert Workers.choose(2, CPU) == Workers(2, 4)
    assert torch.get_num_threads() == 1  # of this process, which will fork
    torch.set_num_threads(3)
    assert Workers.choose(None, CPU) == Workers(3, 3)
    torch.set_num_threads(2)
    assert Workers.choose(8, CPU) == Workers(8, 2)


def test_several_workers_on_a_gpu_are_refused_and_one_is_chosen() -> None:
    gpu = Compute(torch.device("cuda"), torch.bfloat16)
    assert Workers.choose(None, gpu).count == 1
    with pytest.raises(ConfigError, match="workers: 2 is not possible"):
        Workers.choose(2, gpu)
