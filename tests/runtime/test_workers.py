"""Worker processes: order of results, errors, shared memory, how they start and how they end."""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mt import Translator
from mt.errors import ConfigError, MTError
from mt.model.linear import Int8Linear
from mt.runtime.device import Compute
from mt.runtime.sharing import SharedFunction
from mt.runtime.template import MODULES, ensure_worker_template, start_template_early
from mt.runtime.workers import Workers
from tests.conftest import ROOT
from tests.imports import computing_imports
from tests.runtime import jobs

CPU = Compute(torch.device("cpu"), torch.float32)
MB = 1_000_000


def test_results_come_in_the_order_of_the_items_from_several_processes() -> None:
    found = list(Workers(2, 1).map(jobs.item_and_process, range(12)))
    assert [item for item, _ in found] == list(range(12))
    assert len({pid for _, pid in found}) == 2
    assert os.getpid() not in {pid for _, pid in found}


@pytest.mark.parametrize(("count", "items"), [(1, 5), (4, 0)])
def test_with_one_worker_or_no_items_no_process_is_started(count: int, items: int) -> None:
    assert list(Workers(count, 1).map(lambda item: (item, os.getpid()), range(items))) == [
        (i, os.getpid()) for i in range(items)
    ]


def test_a_shared_function_for_no_items_has_no_results() -> None:
    workers = Workers(2, 1)
    assert list(workers.map(workers.share(jobs.threads), [])) == []


def test_the_processes_share_the_threads_so_fewer_processes_have_more() -> None:
    assert list(Workers(2, 6).map(jobs.threads, range(4))) == [3] * 4
    assert list(Workers(4, 6).map(jobs.threads, range(1))) == [6]
    assert list(Workers(4, 1).map(jobs.threads, range(4))) == [1] * 4


def test_a_worker_computes_with_several_threads() -> None:
    a = torch.randn(512, 512)
    found = list(Workers(2, 4).map(partial(jobs.product, a), range(4)))
    assert found == pytest.approx([jobs.product(a, 0)] * 4, rel=1e-2, abs=1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_workers_compute_after_this_process_did_with_several_threads(dtype: str) -> None:
    """A fork of this process would hang, as OpenMP and oneDNN would wait for missing threads."""
    code = (
        "import torch; from functools import partial; from mt.runtime.workers import Workers\n"
        "from tests.runtime.jobs import product; torch.set_num_threads(2)\n"
        f"a = torch.randn(1000, 1000).to(torch.{dtype}); before = product(a, 0)\n"
        "found = list(Workers(2, 4).map(partial(product, a), range(4)))\n"
        "print(all(abs(x - before) < 200 for x in found), torch.get_num_threads())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert result.stdout == "True 2\n", result.stderr


def test_the_processes_stay_up_between_calls_and_end_with_the_object() -> None:
    workers = Workers(2, 1)
    pids = [{pid for _, pid in workers.map(jobs.item_and_process, range(12))} for _ in range(3)]
    assert pids[0] == pids[1] == pids[2]
    work = workers.share(jobs.item_and_process)
    assert {pid for _, pid in workers.map(work, range(12))} == pids[0]
    del workers
    assert_gone(pids[0])


def test_several_threads_use_the_same_processes_at_once() -> None:
    workers = Workers(2, 1)
    outer = workers.map(jobs.item_and_process, range(6))
    assert next(outer)[0] == 0
    with ThreadPoolExecutor(4) as pool:
        found = list(
            pool.map(lambda n: list(workers.map(jobs.item_and_process, range(n))), range(2, 10))
        )
    assert [[item for item, _ in items] for items in found] == [
        list(range(n)) for n in range(2, 10)
    ]
    assert [item for item, _ in outer] == [1, 2, 3, 4, 5]
    assert len({pid for items in found for _, pid in items}) == 2
    workers.close()


def test_after_a_failure_the_next_call_has_processes_again() -> None:
    workers = Workers(2, 1)
    for _ in range(2):
        with pytest.raises(MTError, match="killed"):
            list(workers.map(jobs.killed_at_two, range(6)))
        assert list(workers.map(jobs.threads, range(3))) == [1, 1, 1]
    workers.close()


def test_an_error_has_the_traceback_of_the_worker() -> None:
    with pytest.raises(ValueError, match="no such thing") as caught:
        list(Workers(2, 1).map(jobs.fails, range(2)))
    assert "in fails\n" in caught.value.__notes__[0]


def test_a_function_that_cannot_be_unpickled_is_an_error_that_says_why() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        list(Workers(2, 1).map(jobs.NotWithoutModule(), range(2)))


def test_an_item_that_cannot_be_pickled_is_an_error_of_its_own_call_only() -> None:
    """This holds even if another call's thread sends the item."""
    workers = Workers(2, 1)

    def unsendable(_: int) -> None:
        items: list[Any] = [threading.Lock(), 1]
        with pytest.raises((TypeError, AttributeError), match="pickle"):
            list(workers.map(jobs.item_and_process, items))

    def sendable(count: int) -> list[int]:
        return [item for item, _ in workers.map(jobs.item_and_process, range(count))]

    with ThreadPoolExecutor(4) as pool:
        refused = pool.map(unsendable, range(4), timeout=60)
        assert list(pool.map(sendable, range(2, 10), timeout=60)) == [
            list(range(n)) for n in range(2, 10)
        ]
        list(refused)
    workers.close()


def test_an_error_of_the_function_is_raised_here_and_no_process_is_left() -> None:
    found = []
    with pytest.raises(ConfigError, match="three is too much"):
        found.extend(Workers(2, 1).map(jobs.three_is_too_much, range(100)))
    assert_gone(pid for _, pid in Workers(2, 1).map(jobs.item_and_process, range(2)))


def assert_gone(pids: Iterable[int], seconds: float = 10.0) -> None:
    """Assert that these processes end soon. A zombie counts as ended."""
    deadline = time.monotonic() + seconds
    for pid in set(pids):
        while is_running(pid):
            assert time.monotonic() < deadline, f"process {pid} still runs"
            time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_closing_the_results_kills_the_processes() -> None:
    results = Workers(2, 1).map(jobs.sleeps_after_two, range(10))
    pids = [next(results)]
    began = time.monotonic()
    results.close()
    assert_gone(pids)
    assert time.monotonic() - began < 10


def test_a_killed_worker_is_an_error_that_says_what_may_help() -> None:
    with pytest.raises(MTError, match=r"worker process was killed .*--workers"):
        list(Workers(2, 1).map(jobs.killed_at_two, range(6)))


def test_a_killed_template_is_replaced() -> None:
    template = ensure_worker_template()
    os.kill(template.pid, signal.SIGKILL)
    assert_gone([template.pid])
    assert list(Workers(2, 1).map(jobs.threads, range(2))) == [1, 1]
    assert ensure_worker_template() is not template


def test_log_messages_of_workers_are_logged_by_this_process(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        assert list(Workers(2, 1).map(jobs.logs, range(3))) == [0, 1, 2]
    assert sorted(record.getMessage() for record in caplog.records) == [
        "warning 0",
        "warning 1",
        "warning 2",
    ]


def test_by_default_there_is_one_worker_per_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    for given, count in ((1, 1), (2, 2), (None, 4), (8, 8)):
        workers = Workers.for_compute(given, CPU)
        assert (workers.count, workers.threads) == (count, 4)


def test_a_gpu_has_one_worker_and_several_are_refused() -> None:
    gpu = Compute(torch.device("cuda"), torch.bfloat16)
    assert Workers.for_compute(None, gpu).count == 1
    with pytest.raises(ConfigError, match="workers: 2 is not possible"):
        Workers.for_compute(2, gpu)


# How workers start.


def test_the_parent_of_a_worker_has_one_thread_and_is_not_this_process() -> None:
    template = ensure_worker_template()
    for found in Workers(2, 2).map(jobs.ancestry, range(4)):
        assert found["parent"] == template.pid != os.getpid()
        assert found["parent_threads"] == 1
        assert found["grandparent"] == os.getpid()
        assert "mt.runtime.template" in found["parent_command"]


def test_importing_what_workers_need_computes_nothing() -> None:
    """Together with the test above, this shows that the template never runs a computation."""
    assert computing_imports(MODULES) == []


def test_a_template_is_started_early_only_if_several_workers_are_likely(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[int] = []
    monkeypatch.setattr("mt.runtime.template.ensure_worker_template", lambda: started.append(1))
    monkeypatch.setattr("mt.runtime.template.GPUS", ())
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def starts(workers: int | None, threads: int | None, device: str = "auto") -> bool:
        started.clear()
        start_template_early(workers, threads, device)
        return bool(started)

    assert starts(None, None)
    assert starts(2, 1)
    assert starts(None, 3, "cpu")
    assert not starts(1, 4)
    assert not starts(None, 1)
    assert not starts(4, 4, "cuda:1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert not starts(None, None)
    monkeypatch.setattr("mt.runtime.template.GPUS", ("/dev/null",))
    assert not starts(2, 2)
    assert starts(2, 2, "cpu")


def test_starting_early_imports_no_pytorch() -> None:
    code = (
        "import sys, mt.runtime.template as t; t.start_template_early(2, 2, 'cpu')\n"
        "print('torch' in sys.modules, t._template.is_usable())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert result.stdout == "False True\n", result.stderr


SCRIPT = """
from pathlib import Path
with Path("runs.txt").open("a") as file:
    file.write("once\\n")
import sys
from mt import Translator
translator = Translator.load(sys.argv[1], threads=2, workers=2, precision="fp32")
print("\\n".join(translator.translate(Path(sys.argv[2]).read_text().splitlines())))
"""


def by_script(model: Path, source: Path, folder: Path) -> list[str]:
    (folder / "script.py").write_text(SCRIPT)  # without an `if __name__ == "__main__"`
    return [sys.executable, str(folder / "script.py"), str(model), str(source)]


def by_stdin(model: Path, source: Path, folder: Path) -> list[str]:
    return ["sh", "-c", f"'{sys.executable}' - '{model}' '{source}' <<'END'\n{SCRIPT}\nEND"]


def by_module(model: Path, source: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "mt", *translation(model, source)]


def by_console_script(model: Path, source: Path, folder: Path) -> list[str]:
    return [str(Path(sys.executable).with_name("mt")), *translation(model, source)]


def by_torchrun(model: Path, source: Path, folder: Path) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "mt"]
    return [*launcher, *translation(model, source)]


def translation(model: Path, source: Path) -> list[str]:
    return [
        "translate",
        str(model),
        str(source),
        "--workers",
        "2",
        "--threads",
        "2",
        "--precision",
        "fp32",
    ]


@pytest.mark.parametrize("way", [by_script, by_stdin, by_module, by_console_script, by_torchrun])
def test_workers_start_from_every_kind_of_process(
    way: Callable[[Path, Path, Path], list[str]], trained_run: Path, sample: Path, tmp_path: Path
) -> None:
    expected = Translator.load(trained_run, threads=1, precision="fp32").translate(
        (sample / "test.de").read_text().splitlines()
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = way(trained_run, sample / "test.de", tmp_path)
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=120,
        check=False,
    )
    assert result.stdout.splitlines() == expected, result.stderr
    if way in (by_script, by_stdin):  # the workers did not run the user's script again
        assert (tmp_path / "runs.txt").read_text() == "once\n"


# How workers end.

SLEEPERS = """
import sys, time
from mt.runtime.template import ensure_worker_template
if sys.argv[1] == "importing":
    print(ensure_worker_template().pid, flush=True)
else:
    from mt.runtime.workers import Workers
    from tests.runtime.jobs import sleeps_after_two
    results = Workers(2, 2).map(sleeps_after_two, range(9))
    print(ensure_worker_template().pid, next(results), next(results), flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("importing", signal.SIGKILL),
        ("importing", signal.SIGTERM),
        ("importing", signal.SIGINT),
        ("working", signal.SIGKILL),
        ("working", signal.SIGTERM),
    ],
)
def test_no_process_is_left_however_the_main_process_ends(
    moment: str, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPERS, moment],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == (1 if moment == "importing" else 3)
    process.send_signal(number)
    assert process.wait(30) == -number
    assert_gone(pids, seconds=5)


def test_no_worker_is_left_even_if_a_fork_of_the_main_process_lives_on() -> None:
    """The fork keeps the control socket open, so the template never sees the socket close."""
    code = SLEEPERS.replace(
        "time.sleep(60)",
        "import os\nif not os.fork():\n    time.sleep(15)\nos.kill(os.getpid(), 9)",
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, "working"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        assert_gone(map(int, process.stdout.readline().split()), seconds=10)


def test_ctrl_c_ends_all_processes_without_a_traceback(trained_run: Path, sample: Path) -> None:
    """A terminal sends Ctrl-C to every process of the command, including the workers."""
    command = [
        sys.executable,
        "-m",
        "mt",
        *translation(trained_run, sample / "train.de"),
        "--beam-size",
        "50",
        "--batch-size",
        "1",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(group_of(process.pid)) < 4:  # the command, the template, two workers
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pids = group_of(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=30)[1] == ""
    assert process.returncode == 130
    assert_gone(pids, seconds=5)


def group_of(leader: int) -> list[int]:
    """Return all processes in the given process group, except zombies."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            pids.append(int(path.parent.name))
    return pids


# What workers share.


@pytest.mark.parametrize(("how", "grows"), [("read", False), ("copy", True), ("write", True)])
def test_the_model_is_in_memory_once(how: str, grows: bool) -> None:
    tensor = torch.ones(10 * MB)
    workers = Workers(2, 2)
    work = workers.share(partial(jobs.growth_by, how, tensor))
    for growth, total in workers.map(work, range(2)):
        assert total == (20 * MB if how == "write" else 10 * MB)
        assert (growth > 36 * MB) if grows else (growth < 4 * MB)


def test_with_several_workers_this_process_does_not_keep_the_model(trained_run: Path) -> None:
    for workers, keeps in ((1, True), (2, False)):
        with Translator.load(trained_run, threads=1, workers=workers) as translator:
            translator.translate(["Der Hund schläft."])
            assert ("step_model" in vars(translator)) is keeps


def test_a_worker_does_not_see_what_another_worker_writes() -> None:
    work = Workers(2, 2).share(partial(jobs.growth_by, "write", torch.zeros(MB)))
    assert sorted(total for _, total in Workers(2, 2).map(work, range(2))) == [MB, MB]
    assert sorted(total for _, total in Workers(2, 2).map(work, range(2))) == [MB, MB]


TENSORS = {
    "a matrix": torch.randn(3, 5),
    "a transposed matrix": torch.randn(3, 5).t(),
    "a part of a tensor": torch.arange(100).view(10, 10)[3:7, 2:9:3],
    "one number": torch.tensor(7),
    "no numbers": torch.empty(0, 4),
    "bf16": torch.randn(9).bfloat16(),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "booleans": torch.tensor([True, False, True]),
    "a repeated row": torch.randn(1, 4).expand(3, 4),
}


def contents(values: dict[str, torch.Tensor], item: int) -> list[tuple[object, ...]]:
    return [
        (name, tensor.dtype, tensor.tolist(), tuple(tensor.shape), tensor.stride())
        for name, tensor in values.items()
    ]


def test_tensors_arrive_unchanged() -> None:
    [received] = Workers(2, 2).map(partial(contents, TENSORS), range(1))
    assert received == contents(TENSORS, 0)


def tying(model: torch.nn.ModuleList, item: int) -> tuple[bool, bool, int]:
    a, b = model[0].weight, model[1].weight
    return a is b, a.requires_grad, a.data_ptr() % 64


def test_tied_parameters_stay_tied_and_aligned() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)])
    model[1].weight = model[0].weight
    assert list(Workers(2, 2).map(partial(tying, model), range(1))) == [(True, True, 0)]


def test_int8_weights_that_a_worker_packs_give_the_same_results() -> None:
    layer, x = Int8Linear(torch.randn(40, 24), torch.randn(40)), torch.randn(6, 24)
    [result] = Workers(2, 2).map(partial(apply, layer, x), range(1))
    assert result == layer(x).tolist()


def apply(layer: Int8Linear, x: torch.Tensor, item: int) -> list[list[float]]:
    result: list[list[float]] = layer(x).tolist()
    return result


def test_a_tensor_on_a_gpu_is_not_shared() -> None:
    with pytest.raises(AssertionError, match="meta"):
        SharedFunction(partial(jobs.product, torch.empty(3, device="meta")))
