"""The Transformer encoder-decoder, its layers, and the state of its decoder."""
