"""Tokenizer and token cache of a configuration: found in `cache_dir`, or made and put there for every later run.

Both are named by fingerprints of what they were made from, so an unchanged corpus is tokenized once, and made under a lock, so
that two runs that start together make them once.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mt.config import Config, CorpusConfig
from mt.data.cache import FORMAT_VERSION, TokenCache, build_cache
from mt.data.corpus import CorpusStats, SentencePair, open_corpus
from mt.data.tokenizer import Tokenizer, open_trained, train_tokenizer
from mt.distributed import ALONE, World
from mt.errors import ConfigError, DataError, MTError
from mt.files import atomic_dir, fingerprint, fingerprint_lines, locked, remove_leftovers, sha256_file
from mt.log import progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """What training reads."""

    tokenizer: Tokenizer
    train: TokenCache
    data_fingerprint: str


def prepare(config: Config, world: World = ALONE) -> Prepared:
    """Open the tokenizer and the token cache of `config`; the first rank makes what is missing.

    Raises `DataError` for text that is missing, damaged, unequal or too little.
    """
    made: list[Prepared] = []

    def make() -> tuple[list[str], str, str]:
        made.append(_make(config))
        tokenizer, cache = made[0].tokenizer, made[0].train
        models = [str(path) for path in (tokenizer.src_model, tokenizer.tgt_model, tokenizer.table) if path is not None]
        return models, str(cache.folder), made[0].data_fingerprint

    models, tokens, fingerprint = world.first(make)
    if made:
        return made[0]
    try:
        return Prepared(Tokenizer(*map(Path, models)), TokenCache(Path(tokens)), fingerprint)
    except (OSError, MTError) as error:
        raise DataError(f"{error}; cache_dir ({config.cache_dir}) must be a folder that all machines of a run see") from error


def _make(config: Config) -> Prepared:
    if not config.data.train:
        raise ConfigError("data.train: no training corpus; give at least one")
    text = text_fingerprint(config)
    cache_dir = Path(config.cache_dir).expanduser()
    with locked(cache_dir / "lock", wait=True):
        for folder in ("tokenizers", "tokens"):
            remove_leftovers(cache_dir / folder)
        tokenizer = _tokenizer(config, text, cache_dir)
        data = config.data
        key = fingerprint(FORMAT_VERSION, text, tokenizer.hash, data.filters.model_dump(), data.on_invalid_utf8, data.on_one_sided_empty)
        cache = _cache(config, tokenizer, cache_dir / "tokens" / key)
    return Prepared(tokenizer, cache, key)


def text_fingerprint(config: Config) -> str:
    """Names the training text by its bytes: moving a file changes nothing, changing a line does."""
    return fingerprint([_corpus_fingerprint(corpus, config) for corpus in config.data.train])


def _corpus_fingerprint(corpus: CorpusConfig, config: Config) -> list[str]:
    if corpus.dataset is not None:
        return [fingerprint_lines("\n".join(pair).encode() for pair in open_corpus(corpus, config.data, CorpusStats()))]
    try:
        return [sha256_file(Path(str(path))) for path in (corpus.src, corpus.tgt)]
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from error


def _pairs(config: Config, what: str, show: bool = False) -> Iterator[SentencePair]:
    for corpus in config.data.train:
        stats = CorpusStats()
        yield from progress(open_corpus(corpus, config.data, stats), None, f"{what} {corpus.label}", "pair")
        if show:
            logger.info("%s: %s", corpus.label, stats)


def _tokenizer(config: Config, text: str, cache_dir: Path) -> Tokenizer:
    options = config.tokenizer
    if config.train.init_from is not None:
        return Tokenizer.load(Path(config.train.init_from) / "tokenizer")
    if options.src_model is not None:
        return open_trained(options)
    folder = cache_dir / "tokenizers" / fingerprint(text, options.model_dump(), config.data.on_invalid_utf8)
    if not folder.exists():
        num_pairs = sum(1 for _ in _pairs(config, "count"))
        if not num_pairs:
            raise DataError(f"{', '.join(corpus.label for corpus in config.data.train)}: no training pairs")
        kind = "joint" if options.joint else "one a side"
        logger.info("training the tokenizer: %s, %d pieces, %s", options.model_type, options.vocab_size, kind)
        stride = -(-num_pairs // options.max_lines)
        with atomic_dir(folder) as temporary:
            train_tokenizer(lambda: islice(_pairs(config, "tokenizer"), 0, None, stride), options, temporary)
    return Tokenizer.load(folder)


def _cache(config: Config, tokenizer: Tokenizer, folder: Path) -> TokenCache:
    if (folder / "manifest.json").exists():
        cache = TokenCache(folder)
    else:
        about = {"corpora": [corpus.label for corpus in config.data.train], "tokenizer": tokenizer.hash}
        cache, stats = build_cache(_pairs(config, "tokenize", show=True), tokenizer, config.data.filters, folder, about)
        logger.info("filters: %s", stats)
    sizes = (f"{n:,}" for n in (len(cache), *cache.num_tokens.values()))
    logger.info("training data: %s pairs, %s source and %s target subwords", *sizes)
    return cache
