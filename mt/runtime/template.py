"""Child processes, forked from a template process that has imported PyTorch but never computed.

Forking a process that has computed is unsafe, because the child may wait forever for threads of
OpenMP and oneDNN that exist only in its parent. Starting a new interpreter for each child is slow.
So this process starts a single interpreter, the template, which imports PyTorch, waits, and forks
the children:

    this process ──── control socket ────> template ── fork ──> child, child, ...
          └────── one pipe and one status socket per child ─────> child, child, ...

Pickled data is only sent from this process to processes that it started, through inherited
sockets. Nothing is unpickled from a file or the network. The template ends when this process ends,
and the children end with the template. Linux only.

Importing this module does not import PyTorch, so a command can start the template before it imports
PyTorch (`start_template_early`), and both processes import PyTorch at the same time.
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
from mt.runtime.presence import die_with_parent

MODULES = ("mt.decode.translator",)  # what the workers' template imports
GPUS = ("/dev/nvidiactl", "/dev/kfd")  # exist if an NVIDIA or AMD driver is installed
NUMBER = struct.Struct("<i")  # the format of process ids and exit codes on a status socket
POLL = 2.0  # how often, in seconds, the template checks that its parent is alive
BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from mt.runtime.template import main; main(*sys.argv[2:])"
)


class Child:
    """A child process that a template has forked on behalf of this process."""

    def __init__(self, pid: int, pipe: Connection, status: socket.socket) -> None:
        self.pid, self.pipe, self._status = pid, pipe, status

    def kill(self) -> None:
        """Kill the child, if it is still running."""
        with contextlib.suppress(OSError):
            self._status.shutdown(socket.SHUT_WR)  # which tells the template to kill the child

    def wait(self) -> int:
        """Wait until the child ends. Returns its exit code, or the negative number of a signal."""
        code = _receive_number(self._status)
        self._status.close()
        self.pipe.close()
        # If there is no code, the template and thus the child have been killed.
        return -signal.SIGKILL if code is None else code


class Template:
    """A process that imports some modules once, and then forks child processes on demand."""

    def __init__(self, modules: Sequence[str]) -> None:
        """Start the template process, and return while it is still importing `modules`."""
        self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = [os.path.abspath(folder) for folder in sys.path]
        is_main = threading.current_thread() is threading.main_thread()
        arguments = [control.fileno(), os.getpid(), int(is_main), *modules]
        # By default, OpenBLAS starts threads when NumPy loads it, and a fork would not have them.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        with control, _blocked_interrupts():
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", BOOT, json.dumps(path), *map(str, arguments)],
                pass_fds=[control.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        self._owner = os.getpid()
        atexit.register(self.stop)

    @property
    def pid(self) -> int:
        """The process id of the template."""
        return self._process.pid

    def is_usable(self) -> bool:
        """Whether the template is running and belongs to this process, not to its parent."""
        return self._owner == os.getpid() and self._process.poll() is None

    def start(self, work: Callable[[Connection], object]) -> Child:
        """Start a child process that calls `work` with its end of a pipe, and then exits.

        `work` is pickled. The child imports any modules that it needs and that the template has
        not imported. Raises `MTError` if the template has ended.
        """
        pipe, child_pipe = connection.Pipe()
        status, child_status = socket.socketpair()
        with child_pipe, child_status, contextlib.suppress(OSError):
            fds = [child_pipe.fileno(), child_status.fileno()]
            socket.send_fds(self._control, [b"fork"], fds)
        pid = _receive_number(status)
        if pid is None:
            raise MTError(
                "cannot start a worker process, because the process that forks them has ended"
            )
        child = Child(pid, pipe, status)
        with contextlib.suppress(BrokenPipeError):  # `wait` will report that the child was killed
            pipe.send(work)
        return child

    def stop(self) -> None:
        """Kill the template and all its children."""
        if self._owner == os.getpid():
            atexit.unregister(self.stop)
            self._control.close()
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def _blocked_interrupts() -> Iterator[None]:
    """Block Ctrl-C in this thread, and in the processes it starts, while the block runs."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _receive_number(status: socket.socket) -> int | None:
    """Return a process id or an exit code, or None if the template has ended."""
    with contextlib.suppress(OSError):
        if len(data := status.recv(NUMBER.size)) == NUMBER.size:
            return NUMBER.unpack(data)[0]
    return None


_template: Template | None = None


def ensure_worker_template() -> Template:
    """Return the template for this process's workers. Starts it if it is not running."""
    global _template
    if _template is None or not _template.is_usable():
        _template = Template(MODULES)
    return _template


def start_template_early(workers: int | None, threads: int | None, device: str) -> None:
    """Start the template if a command with the given options will probably need several workers.

    This is a guess that does not need PyTorch. A wrong guess only costs time, because
    `Workers.for_compute` decides later how many workers there are.
    """
    on_gpu = device != "cpu" and (device != "auto" or any(Path(gpu).exists() for gpu in GPUS))
    if sys.platform == "linux" and not on_gpu and (workers or threads or _default_threads()) > 1:
        ensure_worker_template()


def _default_threads() -> int:
    """Return the number of threads that PyTorch will use by default."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return int(setting) if setting.isdigit() else num_cores()


def main(control: str, parent: str, is_main: str, *modules: str) -> None:
    """Run the template process.

    `control` is the file descriptor of the control socket. `parent` is the id of the process that
    started the template, and `is_main` is `1` if the main thread of that process did.
    """
    # A terminal sends Ctrl-C to all processes. The parent handles it and ends the template.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # Linux kills the template when the thread that started it ends. This is only wanted for the
    # main thread.
    if is_main == "1":
        die_with_parent(int(parent))
    for name in modules:
        importlib.import_module(name)
    _Forker(socket.socket(fileno=int(control)), int(parent)).serve()


class _Forker:
    """The loop of the template process: forks and kills children, and reports their exit codes."""

    def __init__(self, control: socket.socket, parent: int) -> None:
        self.control, self.parent = control, parent
        self.children: dict[int, socket.socket] = {}  # status sockets, keyed by process id
        self.watched: dict[socket.socket, int] = {}  # the children that have not been killed
        # Python writes to this pipe when a child ends (SIGCHLD), which wakes up `serve`.
        self.wakeup_reader, self.wakeup_writer = os.pipe()
        for end in (self.wakeup_reader, self.wakeup_writer):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self.wakeup_writer)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def serve(self) -> None:
        """Handle requests until the parent process has ended."""
        while os.getppid() == self.parent:
            for ready in connection.wait([self.control, self.wakeup_reader, *self.watched], POLL):
                if ready is self.control:
                    message, fds, *_ = socket.recv_fds(self.control, 16, 2)
                    if not message:
                        return
                    self.fork(*fds)
                elif isinstance(ready, socket.socket):  # `Child.kill` has shut down the socket
                    os.kill(self.watched.pop(ready), signal.SIGKILL)
                else:
                    os.read(self.wakeup_reader, 4096)
            self.reap()

    def fork(self, pipe: int, status: int) -> None:
        """Fork a child with the file descriptors of its pipe and its status socket."""
        template = os.getpid()
        if not (pid := os.fork()):
            os.close(status)
            self._become_child(template, Connection(pipe))
        os.close(pipe)
        self.children[pid] = socket.socket(fileno=status)
        self.watched[self.children[pid]] = pid
        with contextlib.suppress(OSError):  # the parent has ended, so the child will be killed
            self.children[pid].send(NUMBER.pack(pid))

    def reap(self) -> None:
        """Report the exit codes of the children that have ended."""
        while self.children:
            pid, wait_status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            status = self.children.pop(pid)
            self.watched.pop(status, None)
            with status, contextlib.suppress(OSError):
                status.send(NUMBER.pack(os.waitstatus_to_exitcode(wait_status)))

    def _become_child(self, template: int, pipe: Connection) -> None:
        """Release the resources of the template, call the function sent by the parent, and exit."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        die_with_parent(template)
        for number in (self.wakeup_reader, self.wakeup_writer):
            os.close(number)
        for end in (self.control, *self.children.values()):
            end.close()
        os._exit(_call_received_function(pipe))


def _call_received_function(pipe: Connection) -> int:
    """Receive a function through `pipe`, call it with `pipe`, and return the exit code."""
    code: Any = 1
    try:
        pipe.recv()(pipe)
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return code if isinstance(code, int) else int(code is not None)
