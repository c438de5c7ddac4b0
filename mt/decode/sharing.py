"""Work for several processes whose tensors are in memory once, whatever their number.

The work, a callable with a model in it, is pickled once. Its tensors go into a file without a
name that lives in memory (`memfd_create`), and each worker process maps that file. What a process
writes into them is its own. Weights that oneDNN has packed are packed again by each process.
"""

import mmap
import os
from collections.abc import Callable, Sequence
from io import BytesIO
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")
R = TypeVar("R")
ALIGNMENT = 64  # bytes: of a cache line, and of the widest registers

_memory: mmap.mmap | None = None  # that of the work which is being unpickled


class SharedWork(Generic[T, R]):
    """A callable for worker processes. This process may forget the original."""

    def __init__(self, work: Callable[[T], R]) -> None:
        self._file = os.fdopen(os.memfd_create("mt-model"), "wb")
        pickled = BytesIO()
        _Pickler(pickled, self._write).dump(work)
        self._file.flush()
        self._pickled = pickled.getvalue()

    def _write(self, data: memoryview) -> int:
        """Append `data`; gives the place where it begins."""
        place = -(-self._file.tell() // ALIGNMENT) * ALIGNMENT
        self._file.seek(place)
        self._file.write(data)
        return place

    def send(self, pipe: Connection, pid: int) -> None:
        """Give it to the process `pid` at the other end of `pipe`."""
        reduction.send_handle(pipe, self._file.fileno(), pid)
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
    """Writes what tensors hold by `write`, and pickles where it is."""

    def __init__(self, file: BytesIO, write: Callable[[memoryview], int]) -> None:
        super().__init__(file)
        self._write = write
        self._places: dict[int, int] = {}  # of storages, by their address

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return NotImplemented
        assert type(value) in (Tensor, nn.Parameter), type(value)
        assert value.device.type == "cpu", value.device
        storage = value.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in self._places:
            whole = torch.empty(0, dtype=torch.uint8).set_(storage)
            self._places[storage.data_ptr()] = self._write(whole.numpy().data)
        place = (self._places.get(storage.data_ptr(), 0), storage.nbytes(), value.storage_offset())
        requires_grad = value.requires_grad if isinstance(value, nn.Parameter) else None
        return _tensor_at, (*place, value.dtype, value.shape, value.stride(), requires_grad)


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
