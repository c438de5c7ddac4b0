"""What broke training: the batch of an update that was not finite, with the weights that it met, so
that it can be run again alone.

crash/step_N in the run folder is a model folder of the raw weights with batch.jsonl besides: a pair
a line, ids and text, in the order of the batch. Dropout is a function of (seed, update,
micro-batch), so that a replay computes what training computed.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from torch import Tensor

from mt.artifacts import ModelFolder, RunFolder
from mt.config import Config
from mt.data.batch import AnyBatch, pairs_of
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
    """Write down the batch of an update and the weights it met; says where, or why it could not."""
    folder = run.crash(stats.step)
    about = {
        "step": stats.step,
        "loss_scale": float(stats.loss_scale),
        "num_tokens": stats.update.num_tokens,
    }
    try:
        with atomic_dir(folder.path) as temporary:
            crash = ModelFolder(temporary)
            crash.write(config, weights, tokenizer.save, about)
            lines = (
                json.dumps(line, ensure_ascii=False) + "\n"
                for line in _lines(micro_batches, tokenizer)
            )
            crash.batch_path.write_text("".join(lines), encoding="utf-8")
            crash.seal()
    except Exception as error:  # what it is about matters more
        return f"its batch could not be written to {folder}: {error}"
    return f"its batch is in {folder}; run it again alone: mt replay {folder}"


def _lines(micro_batches: Sequence[AnyBatch], tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    for index, batch in enumerate(micro_batches):
        for src, tgt in pairs_of(batch):
            text = {"src": tokenizer.decode_src(src), "tgt": tokenizer.decode_tgt(tgt)}
            yield {"micro_batch": index, **text, "src_ids": src, "tgt_ids": tgt}


def read_crash(loaded: LoadedModel) -> list[list[tuple[list[int], list[int]]]]:
    """The pairs of ids of each micro-batch. Raises `CheckpointError` for a folder that is something
    else.
    """
    path = loaded.folder.batch_path
    if path.name not in loaded.files:
        raise CheckpointError(
            f"{loaded.folder}: not a crash folder ({path.name} is missing); "
            "they are in crash/ of a run folder"
        )
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        pairs = [
            (
                line["micro_batch"],
                ([int(i) for i in line["src_ids"]], [int(i) for i in line["tgt_ids"]]),
            )
            for line in lines
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not what mt writes: {error}") from error
    return [
        [pair for _, pair in group] for _, group in groupby(pairs, key=lambda numbered: numbered[0])
    ]
