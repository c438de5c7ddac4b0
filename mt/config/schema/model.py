"""Options of the network."""

from typing import Literal

from pydantic import model_validator

from mt.config.schema.section import Section, option


class ModelConfig(Section):
    """The Transformer (Vaswani et al. 2017). Defaults are the paper's base model."""

    preset: Literal["tiny", "small", "base", "big"] | None = option(
        None, "Sizes to start from; keys set beside it win."
    )
    d_model: int = option(512, "Width of embeddings and layers.", ge=2)
    d_ff: int = option(2048, "Inner width of the feed-forward blocks.", ge=1)
    num_heads: int = option(8, "Attention heads; divides d_model.", ge=1)
    encoder_layers: int = option(6, "Layers of the encoder.", ge=1)
    decoder_layers: int = option(6, "Layers of the decoder.", ge=1)
    norm: Literal["pre", "post"] = option(
        "post", "Layer norm before each block (Xiong et al. 2020) or after the sum (paper)."
    )
    activation: Literal["relu", "gelu", "silu"] = option("relu", "Of the feed-forward blocks.")
    dropout: float = option(
        0.1, "On the output of each block, before the residual sum.", ge=0, lt=1
    )
    attention_dropout: float = option(0.0, "On attention weights.", ge=0, lt=1)
    activation_dropout: float = option(
        0.0, "After the activation of the feed-forward blocks.", ge=0, lt=1
    )
    embedding_dropout: float | None = option(
        None,
        "On the sum of embeddings and positions (default: as `dropout`, as in the paper).",
        ge=0,
        lt=1,
    )
    tie_embeddings: Literal["all", "decoder", "none"] = option(
        "all",
        "Share source, target and output matrices (Press and Wolf 2017), target and output only, "
        "or none. `all` needs a joint vocabulary.",
    )
    output_bias: bool = option(False, "A bias for each output, as Marian's own models have.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ModelConfig":
        if self.d_model % self.num_heads:
            raise ValueError(f"num_heads: {self.num_heads} does not divide d_model {self.d_model}")
        if self.d_model % 2:
            raise ValueError(
                f"d_model: {self.d_model} is odd; sinusoidal positions need an even width"
            )
        return self
