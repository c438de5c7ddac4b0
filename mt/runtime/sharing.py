"""Send a function to several processes, which then share the memory of its tensors.

The function is a callable that contains a model. It is pickled once. Its tensors are written to an
unnamed file that exists only in memory (`memfd_create`), and each worker process maps that file.
If a process writes to a tensor, only that process sees the change. Weights that oneDNN has packed
are not shared, because each process packs them again.
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
ALIGNMENT = 64  # in bytes; the size of a cache line and of the widest registers

_numbers = itertools.count()
_memory: mmap.mmap | None = None  # the tensors of the function that is being unpickled


class SharedFunction(Generic[T, R]):
    """A copy of a function that can be sent to worker processes, which share its tensors."""

    def __init__(self, function: Callable[[T], R]) -> None:
        self.number = next(_numbers)
        self._memory = os.memfd_create("mt-model")
        weakref.finalize(self, os.close, self._memory)
        pickled = BytesIO()
        with os.fdopen(self._memory, "wb", closefd=False) as file:
            _Pickler(pickled, file).dump(function)
        self._pickled = pickled.getvalue()

    def send(self, pipe: Connection, pid: int) -> None:
        """Send the function to the process `pid` at the other end of `pipe`."""
        reduction.send_handle(pipe, self._memory, pid)
        pipe.send_bytes(self._pickled)


def receive_function(pipe: Connection) -> Callable[[Any], Any]:
    """Return the function that `SharedFunction.send` has sent through `pipe`."""
    global _memory
    with os.fdopen(reduction.recv_handle(pipe), "rb") as file:
        if size := os.fstat(file.fileno()).st_size:
            _memory = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
    pickled = pipe.recv_bytes()
    try:
        return reduction.ForkingPickler.loads(pickled)
    finally:
        _memory = None


class _Pickler(reduction.ForkingPickler):
    """Writes the data of tensors to a separate file, and pickles only their positions in it."""

    def __init__(self, pickled: BytesIO, memory: IO[bytes]) -> None:
        super().__init__(pickled)
        self._memory = memory
        self._positions: dict[int, int] = {}  # positions of storages in the file, keyed by address

    def reducer_override(self, value: Any) -> Any:
        """Pickle tensors in our own way. `pickle` calls this for each object."""
        if not isinstance(value, Tensor):
            return NotImplemented
        assert type(value) in (Tensor, nn.Parameter), type(value)
        assert value.device.type == "cpu", value.device
        storage = value.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in self._positions:
            storage_bytes = torch.empty(0, dtype=torch.uint8).set_(storage)
            position = -(-self._memory.tell() // ALIGNMENT) * ALIGNMENT
            self._positions[storage.data_ptr()] = self._memory.seek(position)
            self._memory.write(storage_bytes.numpy().data)
        position = self._positions.get(storage.data_ptr(), 0)
        view = (value.dtype, value.shape, value.stride(), value.storage_offset())
        requires_grad = value.requires_grad if isinstance(value, nn.Parameter) else None
        return _tensor_at, (position, storage.nbytes(), *view, requires_grad)


def _tensor_at(
    position: int,
    num_bytes: int,
    dtype: torch.dtype,
    shape: Sequence[int],
    stride: Sequence[int],
    storage_offset: int,
    requires_grad: bool | None,
) -> Tensor:
    """Return a tensor whose data is at `position` in the memory of the function being unpickled.

    It is a parameter if `requires_grad` is not None.
    """
    storage = torch.empty(0, dtype=dtype)
    if num_bytes:
        assert _memory is not None
        count = num_bytes // dtype.itemsize
        storage = torch.frombuffer(_memory, dtype=dtype, count=count, offset=position)
    tensor = storage.as_strided(shape, stride, storage_offset)
    return tensor if requires_grad is None else nn.Parameter(tensor, requires_grad)
