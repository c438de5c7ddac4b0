"""From text to batches: corpora, filters, tokenizer, token cache, loader."""
