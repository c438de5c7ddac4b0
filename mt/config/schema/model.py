"""Options of the network."""

from typing import Literal

from pydantic import model_validator

from mt.config.schema.section import Section, option


class ModelConfig(Section):
    """The Transformer (Vaswani et al. 2017). The defaults are the paper's base model."""

    preset: Literal["tiny", "small", "base", "big"] | None = option(
        None, "Named set of model sizes. Options that are set next to it override its values."
    )
    d_model: int = option(
        512, "Width of the embeddings and of every layer's output; must be even.", ge=2
    )
    d_ff: int = option(2048, "Width of the hidden layer in the feed-forward blocks.", ge=1)
    num_heads: int = option(8, "Number of attention heads per layer; must divide d_model.", ge=1)
    encoder_layers: int = option(6, "Number of encoder layers.", ge=1)
    decoder_layers: int = option(6, "Number of decoder layers.", ge=1)
    norm: Literal["pre", "post"] = option(
        "post",
        "Where to apply layer normalization: before each block (`pre`; Xiong et al. 2020) or "
        "after each residual sum (`post`; Vaswani et al. 2017).",
    )
    activation: Literal["relu", "gelu", "silu"] = option(
        "relu", "Activation function of the feed-forward blocks."
    )
    dropout: float = option(
        0.1, "Dropout rate on the output of each block, before the residual sum.", ge=0, lt=1
    )
    attention_dropout: float = option(0.0, "Dropout rate on the attention weights.", ge=0, lt=1)
    activation_dropout: float = option(
        0.0, "Dropout rate after the activation of the feed-forward blocks.", ge=0, lt=1
    )
    embedding_dropout: float | None = option(
        None,
        "Dropout rate on the sum of embeddings and positions; null: the same as `dropout`, as in "
        "Vaswani et al. 2017.",
        ge=0,
        lt=1,
    )
    tie_embeddings: Literal["all", "decoder", "none"] = option(
        "all",
        "Which matrices are one and the same (Press and Wolf 2017). `all`: the source embeddings, "
        "target embeddings and output layer, which needs a joint vocabulary. `decoder`: the "
        "target embeddings and output layer. `none`: no matrices.",
    )
    output_bias: bool = option(
        False, "Whether the output layer has a bias, as in models trained by Marian."
    )

    @model_validator(mode="after")
    def _sizes_fit(self) -> "ModelConfig":
        if self.d_model % self.num_heads:
            raise ValueError(f"num_heads: {self.num_heads} does not divide d_model {self.d_model}")
        if self.d_model % 2:
            raise ValueError(
                f"d_model: {self.d_model} is odd; sinusoidal positions need an even width"
            )
        return self
