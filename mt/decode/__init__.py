"""From a model and text to translations, log-probabilities and word alignments."""
