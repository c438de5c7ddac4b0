"""Sharded tensors: FSDP2 divides a tensor among the ranks, and each rank saves its own shard."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from mt.errors import CheckpointError


def is_sharded(tensor: Tensor) -> bool:
    """Whether FSDP2 has sharded a tensor."""
    # `isinstance` with `DTensor` would be clearer, but importing that class takes a second.
    return hasattr(tensor, "full_tensor")


def unsharded(tensor: Tensor) -> Tensor:
    """Gather and return the full tensor if `tensor` is sharded; all ranks must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local_shard(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, or the tensor itself if it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def save_shards(tensors: Mapping[str, Tensor], folder: Path, group: Any) -> None:
    """Write tensors to safetensors files in `folder`; each rank of `group` writes its own shards.

    All ranks must call this together. Raises `CheckpointError` on all ranks if one of them fails.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer, process_group=group)
    except CheckpointException as error:
        raise CheckpointError(f"{folder}: could not be written: {_causes(error)}") from error


def load_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill `tensors`, or this rank's shards of them, from the safetensors files in `folder`.

    Any number of ranks may have written the files. Raises `CheckpointError` if they cannot be read
    or if the names or shapes of the tensors do not match.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        # PyTorch warns about `no_dist`, but each rank is meant to read the files on its own.
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        try:
            load(dict(tensors), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
        except (
            CheckpointException,
            RuntimeError,
            ValueError,
            KeyError,
            TypeError,
            OSError,
            SafetensorError,
        ) as error:
            raise CheckpointError(f"{folder} does not fit this run: {_causes(error)}") from error


def _causes(error: BaseException) -> str:
    """Return the messages in `error`, for which PyTorch collects errors from all ranks."""
    if failures := getattr(error, "failures", None):
        return "; ".join(sorted({str(cause) for cause, _ in failures.values()}))
    return str(error)
