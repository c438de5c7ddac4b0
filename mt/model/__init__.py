"""The Transformer encoder-decoder, its parts, and the state of its decoder."""
