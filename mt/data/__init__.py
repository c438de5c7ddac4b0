"""The training data, from parallel text to micro-batches.

  1. `sources` reads each corpus, two text files or a dataset, as sentence pairs, and counts or
     refuses odd lines.
  2. `checks` drops pairs that are too long, too uneven or without subwords, and counts them.
  3. `tokenizer` trains or opens the SentencePiece models that turn text into ids.
  4. `store` writes the ids of all corpora to disk as one memory-mapped token cache.
  5. `order` chooses the pairs for each update, given the seed, the epoch and the position.
  6. `batch` pads or packs the pairs of a micro-batch into tensors.

`prepare` runs steps 1 to 4 once, and keeps the results in `cache_dir` for later runs.
`order.TrainLoader` runs steps 5 and 6 during training.
"""
