"""Build a small Transformer and random sources for the model tests."""

import torch
from torch import Tensor

from mt.config import ModelConfig
from mt.model.transformer import Transformer, build_model

PAD, VOCAB = 0, 17


def small(
    norm: str = "pre", tie: str = "all", activation: str = "relu", seed: int = 1
) -> Transformer:
    """Build a small model in evaluation mode.

    Its norms and biases are random, so that mixing any of them up changes the output.
    """
    config = ModelConfig(
        d_model=16,
        d_ff=24,
        num_heads=4,
        encoder_layers=2,
        decoder_layers=3,
        norm=norm,
        activation=activation,
        tie_embeddings=tie,
    )
    model = build_model(config, VOCAB, VOCAB, seed)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


def sources(*lengths: int) -> tuple[Tensor, Tensor]:
    """Return random ids that are padded on the right, and their mask."""
    draw = torch.Generator().manual_seed(7)
    src = torch.randint(4, VOCAB, (len(lengths), max(lengths)), generator=draw)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return src.masked_fill(~mask, PAD), mask
