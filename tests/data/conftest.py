"""Fixtures for the data tests: sample corpus pairs, a tokenizer trained on them, and a function
that writes a corpus to a temporary folder.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from mt.config import CorpusConfig, TokenizerConfig
from mt.data.sources import SentencePair
from mt.data.store import TokenCache
from mt.data.tokenizer import Tokenizer, train_tokenizer

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "sample"

WriteCorpus = Callable[..., CorpusConfig]


class IdTokenizer(Tokenizer):
    """Turns the text `7 8 9` into the ids [7, 8, 9], for tests that need to choose the ids."""

    def __init__(self, vocab_size: int = 1000) -> None:
        self._vocab_size = vocab_size

    @property
    def src_vocab_size(self) -> int:
        return self._vocab_size

    tgt_vocab_size = src_vocab_size

    def encode_src(self, lines: Sequence[str]) -> list[list[int]]:
        return [list(map(int, line.split())) for line in lines]

    encode_tgt = encode_src

    def decode_tgt_lines(self, lines: Sequence[Sequence[int]]) -> list[str]:
        return [" ".join(map(str, ids)) for ids in lines]


def pair_ids(cache: TokenCache, index: int) -> tuple[list[int], list[int]]:
    """Return the source ids and the target ids of one pair."""
    src, tgt = cache.rows(np.array([index]))
    return src.ids.tolist(), tgt.ids.tolist()


@pytest.fixture(scope="session")
def id_tokenizer() -> Callable[[int], IdTokenizer]:
    """Return a function that makes an `IdTokenizer` with the given vocabulary size."""
    return IdTokenizer


@pytest.fixture(scope="session")
def sample_pairs() -> list[SentencePair]:
    """Return the first 600 training pairs of the sample corpus."""
    sides = [
        (SAMPLE / f"train.{language}").read_text(encoding="utf-8").split("\n")[:600]
        for language in ("de", "en")
    ]
    return [SentencePair(*pair) for pair in zip(*sides, strict=True)]


@pytest.fixture(scope="session")
def tokenizer(
    tmp_path_factory: pytest.TempPathFactory, sample_pairs: list[SentencePair]
) -> Tokenizer:
    """Train a joint unigram model with 500 pieces."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(lambda: sample_pairs, TokenizerConfig(vocab_size=500, num_threads=1), folder)
    return Tokenizer.load(folder)


@pytest.fixture
def write_corpus(tmp_path: Path) -> WriteCorpus:
    """Return a function that writes both sides to files and returns the corpus configuration."""

    def write(src: bytes, tgt: bytes, name: str = "train") -> CorpusConfig:
        paths = [tmp_path / f"{name}.{side}" for side in ("src", "tgt")]
        for path, side in zip(paths, (src, tgt), strict=True):
            path.write_bytes(side)
        return CorpusConfig(src=str(paths[0]), tgt=str(paths[1]))

    return write
