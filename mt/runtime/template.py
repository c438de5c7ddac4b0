"""Processes forked from one that has imported PyTorch but has never computed.

Forking a process that has computed is unsafe: the child lacks the threads of its parent's OpenMP
pool and oneDNN, and may wait for them for ever. Starting an interpreter for each process is slow.
So a process in between is started, the template, which imports, waits, and forks the others:

    this process ──── control ────> template ── fork ──> child, child, ...
          └───── a pipe and a status socket of its own ────> each child

Nothing is read from a file or the network: what is pickled goes from this process to processes
that it started, over sockets that they inherit. The template ends when this process does, and its
children end with it. For Linux.

Importing this imports no PyTorch: a command starts the template of its workers first
(`start_early`), so that both processes import it at the same time.
"""

import atexit
import contextlib
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from mt.errors import MTError
from mt.runtime.environment import num_cores
from mt.runtime.presence import die_with

MODULES = ("mt.decode.translator",)  # what workers do
GPUS = ("/dev/nvidiactl", "/dev/kfd")  # the drivers of NVIDIA and AMD
NUMBER = struct.Struct("<i")  # a process id, and later its exit status, on a status socket
POLL = 2.0  # seconds after which the template looks whether its parent has gone without a word
BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from mt.runtime.template import main; main(*sys.argv[2:])"
)


class Child:
    """A process that a template has forked for this one."""

    def __init__(self, pid: int, pipe: Connection, status: socket.socket) -> None:
        self.pid, self.pipe, self._status = pid, pipe, status

    def kill(self) -> None:
        """Kill it, whatever it does; nothing happens if it has ended."""
        with contextlib.suppress(OSError):
            self._status.shutdown(socket.SHUT_WR)

    def wait(self) -> int:
        """Wait for its end; gives its exit status, or the signal that killed it as a negative."""
        code = _receive_number(self._status)
        self._status.close()
        self.pipe.close()
        return (
            -signal.SIGKILL if code is None else code
        )  # the template is gone, and so is the child


class Template:
    """A process that has imported some modules, and forks others."""

    def __init__(self, modules: Sequence[str]) -> None:
        """Start it; it imports `modules` while this process does something else."""
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = [os.path.abspath(folder) for folder in sys.path]
        is_main = threading.current_thread() is threading.main_thread()
        arguments = [control.fileno(), os.getpid(), int(is_main), *modules]
        # OpenBLAS starts threads when NumPy loads it, which no fork would take along.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        with control, _without_interrupts():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", BOOT, json.dumps(path), *map(str, arguments)],
                pass_fds=[control.fileno()], stdin=subprocess.DEVNULL, env=environment,
            )  # fmt: skip
        self._owner = os.getpid()
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        """Of the template itself."""
        return self._process.pid

    def is_usable(self) -> bool:
        """Whether it runs, and was started by this process rather than by one that forked it."""
        return self._owner == os.getpid() and self._process.poll() is None

    def start(self, work: Callable[[Connection], object]) -> Child:
        """Fork a child that calls `work` with its end of a pipe, and ends. Raises `MTError`.

        `work` is pickled: modules that the template has not imported are imported by the child.
        """
        pipe, child_pipe = connection.Pipe()
        status, child_status = socket.socketpair()
        with child_pipe, child_status, contextlib.suppress(OSError):
            fds = [child_pipe.fileno(), child_status.fileno()]
            socket.send_fds(self._control, [b"fork"], fds)
        pid = _receive_number(status)
        if pid is None:
            raise MTError("no worker process could be started: the one that starts them has ended")
        child = Child(pid, pipe, status)
        with contextlib.suppress(BrokenPipeError):  # killed already, which whoever waits will see
            pipe.send(work)
        return child

    def stop(self) -> None:
        """End it and all its children."""
        if self._owner == os.getpid():
            atexit.unregister(self.stop)
            self._control.close()
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Hold back Ctrl-C from this thread, and so from what it starts, until the block is left."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _receive_number(status: socket.socket) -> int | None:
    with contextlib.suppress(OSError):
        if len(data := status.recv(NUMBER.size)) == NUMBER.size:
            number: int = NUMBER.unpack(data)[0]
            return number
    return None


_template: Template | None = None


def worker_template() -> Template:
    """The template of this process, started if it does not run."""
    global _template
    if _template is None or not _template.is_usable():
        _template = Template(MODULES)
    return _template


def start_early(workers: int | None, threads: int | None, device: str) -> None:
    """Start the template if a command with these options will probably have several workers.

    A wrong guess costs time, and nothing else: `Workers.choose` knows.
    """
    on_gpu = device != "cpu" and (device != "auto" or any(Path(gpu).exists() for gpu in GPUS))
    if sys.platform == "linux" and not on_gpu and (workers or threads or _usual_threads()) > 1:
        worker_template()


def _usual_threads() -> int:
    """How many threads PyTorch will take."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdigit() else num_cores()


def main(control: str, parent: str, is_main: str, *modules: str) -> None:
    """The life of a template, which the thread `is_main` of the process `parent` has started."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends the others
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if is_main == "1":  # the system takes the end of any other thread for the end of the process
        die_with(int(parent))
    for name in modules:
        importlib.import_module(name)
    _Forker(socket.socket(fileno=int(control)), int(parent)).serve()


class _Forker:
    """The template at work: forks on demand, kills on demand, and tells how its children ended."""

    def __init__(self, control: socket.socket, parent: int) -> None:
        self.control, self.parent = control, parent
        self.children: dict[int, socket.socket] = {}  # the status socket of each
        self.watched: dict[socket.socket, int] = {}  # which of them may still order a kill
        self.woken, self.waker = os.pipe()  # by the end of a child
        for end in (self.woken, self.waker):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self.waker)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self) -> None:
        """Until the process that started this one is gone."""
        while os.getppid() == self.parent:
            for ready in connection.wait([self.control, self.woken, *self.watched], POLL):
                if ready is self.control:
                    message, fds, *_ = socket.recv_fds(self.control, 16, 2)
                    if not message:
                        return
                    self.fork(*fds)
                elif isinstance(ready, socket.socket):  # shut down by the other side
                    os.kill(self.watched.pop(ready), signal.SIGKILL)
                else:
                    os.read(self.woken, 4096)
            self.reap()

    def fork(self, pipe: int, status: int) -> None:
        template = os.getpid()
        if not (pid := os.fork()):
            os.close(status)
            self._become_child(template, Connection(pipe))
        os.close(pipe)
        self.children[pid] = socket.socket(fileno=status)
        self.watched[self.children[pid]] = pid
        with contextlib.suppress(OSError):  # whoever wanted it has gone: it will be killed
            self.children[pid].send(NUMBER.pack(pid))

    def reap(self) -> None:
        while self.children:
            pid, ended = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            status = self.children.pop(pid)
            self.watched.pop(status, None)
            with status, contextlib.suppress(OSError):
                status.send(NUMBER.pack(os.waitstatus_to_exitcode(ended)))

    def _become_child(self, template: int, pipe: Connection) -> None:
        """Forget the template, do one piece of work, and end."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with(template)
        for number in (self.woken, self.waker):
            os.close(number)
        for end in (self.control, *self.children.values()):
            end.close()
        os._exit(_exit_code(pipe))


def _exit_code(pipe: Connection) -> int:
    """Do what comes through `pipe`; the exit status that it asks for."""
    code: Any = 1
    try:
        work: Callable[[Connection], object] = pipe.recv()
        work(pipe)
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return code if isinstance(code, int) else int(code is not None)
