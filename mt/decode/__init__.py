"""From a model to translations: the search over its decoder state, and text in, text out."""
