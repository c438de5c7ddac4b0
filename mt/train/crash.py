"""Crash folders store an update whose loss or gradient was not finite, for `mt replay`.

crash/step_N in the run folder is a model folder with the raw weights before the update. It also has
batch.jsonl, with one sentence pair per line, as ids and as text, in the order of the batch. Dropout
depends only on the seed, the update and the micro-batch, so a replay computes exactly what training
computed.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby

from torch import Tensor

from mt.artifacts import ModelFolder, RunFolder
from mt.config import Config
from mt.data.batch import AnyBatch, unbatch
from mt.data.tokenizer import Tokenizer
from mt.decode.loading import LoadedModel
from mt.errors import CheckpointError
from mt.files import atomic_dir
from mt.train.gradients import PendingStats


def write_crash(
    run: RunFolder,
    config: Config,
    tokenizer: Tokenizer,
    weights: dict[str, Tensor],
    micro_batches: Sequence[AnyBatch],
    stats: PendingStats,
) -> str:
    """Write the crash folder of an update, and return a message that says where it is.

    If the folder cannot be written, the message gives the reason.
    """
    folder = run.crash(stats.step)
    provenance = {
        "step": stats.step,
        "loss_scale": float(stats.loss_scale),
        "num_tokens": stats.update.num_tokens,
    }
    try:
        with atomic_dir(folder.path) as temporary:
            crash = ModelFolder(temporary)
            crash.write(config, weights, tokenizer.save, provenance)
            lines = "".join(_lines(micro_batches, tokenizer))
            crash.batch_path.write_text(lines, encoding="utf-8")
            crash.seal()
    except Exception as error:  # the error that stopped training matters more to the user
        return f"the batch could not be written to {folder}: {error}"
    return f"the batch was saved; to run it again: mt replay {folder}"


def _lines(micro_batches: Sequence[AnyBatch], tokenizer: Tokenizer) -> Iterator[str]:
    for index, batch in enumerate(micro_batches):
        for src, tgt in unbatch(batch):
            pair = {
                "micro_batch": index,
                "src": tokenizer.decode_src(src),
                "tgt": tokenizer.decode_tgt(tgt),
                "src_ids": src,
                "tgt_ids": tgt,
            }
            yield json.dumps(pair, ensure_ascii=False) + "\n"


def read_crash(loaded: LoadedModel) -> list[list[tuple[list[int], list[int]]]]:
    """Read the (source ids, target ids) pairs of each micro-batch from a loaded crash folder.

    Raises `CheckpointError` if the folder is not a crash folder.
    """
    path = loaded.folder.batch_path
    if path.name not in loaded.files:
        raise CheckpointError(
            f"{loaded.folder} is not a crash folder, because {path.name} is missing; "
            "crash folders are in crash/ of a run folder"
        )
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        numbered_pairs = [
            (
                line["micro_batch"],
                ([int(i) for i in line["src_ids"]], [int(i) for i in line["tgt_ids"]]),
            )
            for line in lines
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not written by mt: {error}") from error
    groups = groupby(numbered_pairs, key=lambda numbered: numbered[0])
    return [[pair for _, pair in group] for _, group in groups]
