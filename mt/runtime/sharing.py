"""Work for several processes whose tensors are in memory once, whatever their number.

The work, a callable with a model in it, is pickled once. Its tensors go into a file without a
name that lives in memory (`memfd_create`), and each worker process maps that file. What a process
writes into them is its own. Weights that oneDNN has packed are packed again by each process.
"""

import itertools
import mmap
import os
import weakref
from collections.abc import Callable, Sequence
from io import BytesIO
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import IO, Any, Generic, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
R = TypeVar("R")
ALIGNMENT = 64  # bytes: of a cache line, and of the widest registers

_numbers = itertools.count()
_memory: mmap.mmap | None = None  # that of the work which is being unpickled


class SharedWork(Generic[T, R]):
    """A callable for worker processes. This process may forget the original."""

    def __init__(self, work: Callable[[T], R]) -> None:
        self.number = next(_numbers)
        self._memory = os.memfd_create("mt-model")
        weakref.finalize(self, os.close, self._memory)
        pickled = BytesIO()
        with os.fdopen(self._memory, "wb", closefd=False) as file:
            _Pickler(pickled, file).dump(work)
        self._pickled = pickled.getvalue()

    def send(self, pipe: Connection, pid: int) -> None:
        """Give it to the process `pid` at the other end of `pipe`."""
        reduction.send_handle(pipe, self._memory, pid)
        pipe.send_bytes(self._pickled)


def receive_work(pipe: Connection) -> Callable[[Any], Any]:
    """What `SharedWork.send` sends."""
    global _memory
    with os.fdopen(reduction.recv_handle(pipe), "rb") as file:
        if size := os.fstat(file.fileno()).st_size:
            _memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    pickled = pipe.recv_bytes()
    try:
        work: Callable[[Any], Any] = reduction.ForkingPickler.loads(pickled)
        return work
    finally:
        _memory = None


class _Pickler(reduction.ForkingPickler):
    """Writes what tensors hold to a file of its own, and pickles where it is."""

    def __init__(self, pickled: BytesIO, memory: IO[bytes]) -> None:
        super().__init__(pickled)
        self._memory = memory
        self._places: dict[int, int] = {}  # of storages, by their address

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        assert type(value) in (Tensor, nn.Parameter), type(value)
        assert value.device.type == "cpu", value.device
        storage = value.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in self._places:
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            place = -(-self._memory.tell() // ALIGNMENT) * ALIGNMENT
            self._places[storage.data_ptr()] = self._memory.seek(place)
            self._memory.write(whole.numpy().data)
        where = (self._places.get(storage.data_ptr(), 0), storage.nbytes(), value.storage_offset())
        requires_grad = value.requires_grad if isinstance(value, nn.Parameter) else None
        return _tensor_at, (*where, value.dtype, value.shape, value.stride(), requires_grad)


def _tensor_at(
    place: int,
    length: int,
    offset: int,
    dtype: torch.dtype,
    shape: Sequence[int],
    stride: Sequence[int],
    requires_grad: bool | None,
) -> Tensor:
    """A tensor in the memory of the work that is being unpickled; `length` in bytes."""
    storage = torch.empty(0, dtype=dtype)
    if length:
        assert _memory is not None
        count = length // dtype.itemsize
        storage = torch.frombuffer(_memory, dtype=dtype, count=count, offset=place)
    tensor = storage.as_strided(shape, stride, offset)
    return tensor if requires_grad is None else nn.Parameter(tensor, requires_grad)
