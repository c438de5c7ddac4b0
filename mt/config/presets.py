"""Named model sizes. Each sets options of the `model` section, which the user can override."""

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # For quick experiments. Trains on a laptop in minutes.
    "tiny": {
        "d_model": 128,
        "d_ff": 512,
        "num_heads": 4,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "norm": "pre",
        "dropout": 0.1,
    },
    # For corpora of 20,000 to 200,000 pairs, on a CPU or one GPU.
    "small": {
        "d_model": 256,
        "d_ff": 1024,
        "num_heads": 4,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "norm": "pre",
        "dropout": 0.3,
    },
    # The base and big models of Vaswani et al. 2017, table 3.
    "base": {
        "d_model": 512,
        "d_ff": 2048,
        "num_heads": 8,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "norm": "post",
        "dropout": 0.1,
    },
    "big": {
        "d_model": 1024,
        "d_ff": 4096,
        "num_heads": 16,
        "encoder_layers": 6,
        "decoder_layers": 6,
        "norm": "post",
        "dropout": 0.3,
    },
}
