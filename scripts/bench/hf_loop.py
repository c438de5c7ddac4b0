"""Measure the training speed of Hugging Face's Marian in a plain PyTorch loop.

Usage: python scripts/bench/hf_loop.py CONFIG [key=value ...] [--updates 30] [--warmup 5]
           [--repeat 3] [--json FILE]

The model has the configuration's sizes and dropout rates, and shared embeddings. It trains on the
padded batches that `mt train` would use. The batches are prepared in advance, so that the loop
never waits for data. The optimizer is PyTorch's fused AdamW, and bf16 means autocast. Target tokens
are counted without padding.
"""

import argparse
import contextlib
import json
import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from train import peak_memory, synchronize
from transformers import MarianConfig, MarianMTModel

from mt.config import Config, load_config
from mt.data.batch import Batch, to_device
from mt.data.order import TrainLoader, Update
from mt.data.prepare import prepare
from mt.data.tokenizer import BOS_ID, EOS_ID, PAD_ID
from mt.runtime.device import Compute, set_up_compute


def marian(config: Config, vocab_size: int) -> MarianMTModel:
    """Build a Marian model with the configuration's sizes and random weights."""
    sizes = config.model
    marian_config = MarianConfig(
        vocab_size=vocab_size,
        d_model=sizes.d_model,
        max_position_embeddings=1024,
        encoder_layers=sizes.encoder_layers,
        encoder_attention_heads=sizes.num_heads,
        decoder_layers=sizes.decoder_layers,
        decoder_attention_heads=sizes.num_heads,
        encoder_ffn_dim=sizes.d_ff,
        decoder_ffn_dim=sizes.d_ff,
        dropout=sizes.dropout,
        attention_dropout=sizes.attention_dropout,
        activation_dropout=sizes.activation_dropout,
        activation_function=sizes.activation,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        decoder_start_token_id=BOS_ID,
        forced_eos_token_id=None,
        share_encoder_decoder_embeddings=True,
    )
    return MarianMTModel(marian_config)


def loss_of(model: MarianMTModel, batch: Batch, label_smoothing: float, compute: Compute) -> Tensor:
    """Return the mean loss of a batch, computed the way tutorials do it."""
    with compute.autocast():
        logits = model(
            input_ids=batch.src,
            attention_mask=batch.src_mask,
            decoder_input_ids=batch.tgt_in,
            use_cache=False,
        ).logits
    logits, targets = logits.float().flatten(0, 1), batch.tgt_out.flatten()
    return F.cross_entropy(logits, targets, ignore_index=PAD_ID, label_smoothing=label_smoothing)


def train_function(
    config: Config, model: MarianMTModel, compute: Compute
) -> Callable[[Update], None]:
    """Return a function that trains the model on one update."""
    betas = (config.optim.betas[0], config.optim.betas[1])
    optimizer = torch.optim.AdamW(model.parameters(), config.optim.lr, betas, fused=True)

    def train(update: Update) -> None:
        for batch in (to_device(batch, compute.device) for batch in update.micro_batches):
            loss = loss_of(model, batch, config.train.label_smoothing, compute)
            (loss / len(update.micro_batches)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_norm or math.inf)
        optimizer.step()
        optimizer.zero_grad()

    return train


def speed(train: Callable[[Update], None], updates: Iterator[Update], compute: Compute) -> float:
    """Train on some updates, and return target tokens/s."""
    synchronize(compute)
    tokens, start = 0, time.perf_counter()
    for update in updates:
        train(update)
        tokens += update.num_tokens
    synchronize(compute)
    return tokens / (time.perf_counter() - start)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure speed and peak memory for one configuration."""
    config = load_config(args.config, args.overrides)
    compute = set_up_compute(config.device, config.precision, config.threads, for_training=True)
    prepared = prepare(config)
    torch.manual_seed(config.seed)
    model = marian(config, prepared.tokenizer.tgt_vocab_size).to(compute.device).train()
    train = train_function(config, model, compute)
    counts = [args.warmup] + args.repeat * [args.updates]
    batching, accumulated = config.batching, config.train.grad_accum_steps
    loader = TrainLoader(prepared.train, batching, config.seed, grad_accum_steps=accumulated)
    with contextlib.closing(loader.updates()) as updates:  # type: ignore[type-var]
        _, *rates = [speed(train, islice(updates, count), compute) for count in counts]
    return {
        "config": str(args.config),
        "overrides": args.overrides,
        "compute": str(compute),
        "parameters": sum(p.numel() for p in model.parameters()),
        "attention": model.config._attn_implementation,
        "target_tokens_per_second": statistics.median(rates),
        "runs": rates,
        "peak_memory_gib": peak_memory(compute),
    }


def main() -> None:
    """Measure, print the result, and write it to --json if given."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logging.getLogger("mt").setLevel(logging.WARNING)
    result = measure(args)
    print(json.dumps(result, indent=2))
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
