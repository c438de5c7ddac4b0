"""Tensors that ranks share out among them, in memory by FSDP2 and on the disk as safetensors files,
a shard of each rank.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from mt.errors import CheckpointError


def is_sharded(tensor: Tensor) -> bool:
    """Whether FSDP2 has shared out a tensor: whether it is a DTensor, whose class takes a second to
    import.
    """
    return hasattr(tensor, "full_tensor")


def unsharded(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be shared out; all ranks must call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def own_shard(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be shared out."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def save_shards(tensors: Mapping[str, Tensor], folder: Path, group: Any) -> None:
    """Write tensors as safetensors files, to which each rank of `group` adds its share. Raises
    `CheckpointError` on all ranks.
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
    """Fill tensors, or this rank's shards of them, from the safetensors files of a folder, whatever
    number of ranks wrote them.

    Raises `CheckpointError` for tensors of other names or shapes.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "torch.distributed is disabled"
        )  # each rank reads for itself, as is meant
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
            raise CheckpointError(f"{folder}: does not fit this run: {_causes(error)}") from error


def _causes(error: BaseException) -> str:
    """What lies behind PyTorch's collection of the ranks' failures."""
    failures = getattr(error, "failures", None)
    return (
        "; ".join(sorted({str(cause) for cause, _ in failures.values()}))
        if failures
        else str(error)
    )
