"""Prepare the training data: make the tokenizer and the token cache, and keep them in `cache_dir`.

Each folder is named after a fingerprint of everything it was made from, so a corpus that has not
changed is tokenized only once. If two runs start together, a lock makes sure that only one
of them makes a missing folder. A run does not wait if its folders exist.
"""

import logging
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from mt.config import Config, CorpusConfig, expand_path
from mt.data.sources import CorpusStats, SentencePair, open_corpus
from mt.data.store import FORMAT_VERSION, TokenCache, build_cache
from mt.data.tokenizer import Tokenizer, copy_models, train_tokenizer
from mt.errors import ConfigError, DataError, MTError
from mt.files import (
    atomic_dir,
    fingerprint,
    fingerprint_lines,
    locked,
    remove_leftovers,
    sha256_file,
    sha256_text,
)
from mt.log import progress
from mt.runtime.world import ALONE, World

logger = logging.getLogger(__name__)

HASH_FILE = "hash"  # contains the `Tokenizer.hash` of a tokenizer in the cache, to detect damage


@dataclass(frozen=True)
class Prepared:
    """The data that training reads."""

    tokenizer: Tokenizer
    train: TokenCache
    data_fingerprint: str


def prepare(config: Config, world: World = ALONE, tokenizer: Path | None = None) -> Prepared:
    """Open the tokenizer and the token cache of `config`; rank 0 makes them first if necessary.

    `tokenizer` is a tokenizer folder to use, for example from a resumed run. Raises
    `DataError` if the training text is missing, damaged, too short or has sides of unequal length.
    """
    tokenizer_folder, tokens_folder, data = world.broadcast_from_rank0(
        lambda: _fill_cache(config, tokenizer)
    )
    try:
        return Prepared(
            Tokenizer.load(Path(tokenizer_folder)), TokenCache(Path(tokens_folder)), data
        )
    except (OSError, MTError) as error:
        raise DataError(
            f"{error}; cache_dir ({config.cache_dir}) must be a folder that all machines can read"
        ) from error


def _fill_cache(config: Config, given_tokenizer: Path | None) -> tuple[str, str, str]:
    """Make the tokenizer and the token cache in `cache_dir` unless they exist.

    Returns (tokenizer folder, token cache folder, data fingerprint).
    """
    if not config.data.train:
        raise ConfigError("data.train: no training corpus; give at least one")
    text = text_fingerprint(config)
    cache_dir = _make_cache_dir(config)
    tokenizer_folder = _find_or_make_tokenizer(
        config, text, cache_dir / "tokenizers", given_tokenizer
    )
    tokenizer = _open_tokenizer(tokenizer_folder)
    _check_vocabulary_can_be_tied(config, tokenizer)
    data = data_fingerprint(text, tokenizer, config)
    tokens_folder = _find_or_make(
        cache_dir / "tokens" / fingerprint(FORMAT_VERSION, data),
        "the tokenized corpus",
        partial(_tokenize, config, tokenizer),
    )
    cache = TokenCache(tokens_folder)
    _log_sizes(cache)
    _check_lossy(cache, config.tokenizer.max_lossy_share)
    return str(tokenizer_folder), str(tokens_folder), data


def _make_cache_dir(config: Config) -> Path:
    try:
        path = expand_path(config.cache_dir)
    except ValueError as error:
        raise ConfigError(f"cache_dir: {config.cache_dir}: {error}") from error
    if path.startswith("~"):
        raise ConfigError(
            f"cache_dir: {config.cache_dir}: this user has no home folder; choose another folder, "
            "such as cache_dir=cache"
        )
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cache_dir: {path}: {error.strerror}; choose another folder, such as cache_dir=cache"
        ) from error
    return Path(path)


def _find_or_make(folder: Path, description: str, make: Callable[[Path], None]) -> Path:
    """Return `folder`. If it does not exist, one process makes it while the others wait."""
    if not folder.exists():
        with locked(folder.parent.parent / "locks" / folder.name, wait_for=description):
            if not folder.exists():
                remove_leftovers(folder.parent, folder.name)
                make(folder)
    return folder


# Fingerprints


def data_fingerprint(text: str, tokenizer: Tokenizer, config: Config) -> str:
    """Return a fingerprint of the training data.

    It covers the text (`text` is its `text_fingerprint`), the tokenizer, and the options that drop
    or replace lines.
    """
    data = config.data
    return fingerprint(
        1,
        text,
        tokenizer.hash,
        data.filters.model_dump(),
        data.on_invalid_utf8,
        data.on_one_sided_empty,
    )


def text_fingerprint(config: Config, hash_file: Callable[[Path], str] = sha256_text) -> str:
    """Return a fingerprint of all lines in the training text.

    With the default `hash_file`, it does not change if a file is moved or compressed, or gets
    different line endings. Raises `DataError` for text that can be read only once, such as a pipe.
    """
    return fingerprint(
        [_corpus_fingerprint(corpus, config, hash_file) for corpus in config.data.train]
    )


def fingerprint_before_0_2(config: Config, tokenizer: Tokenizer) -> str:
    """Return the fingerprint that versions of `mt` before 0.2 computed for the same data.

    Those versions hashed the bytes of files, so compressing a file changed the fingerprint.
    """
    return data_fingerprint(text_fingerprint(config, sha256_file), tokenizer, config)


def _corpus_fingerprint(
    corpus: CorpusConfig, config: Config, hash_file: Callable[[Path], str]
) -> list[str]:
    if corpus.dataset is not None:
        return [
            fingerprint_lines(
                "\n".join(pair).encode() for pair in open_corpus(corpus, config.data, CorpusStats())
            )
        ]
    check_corpus(corpus)
    paths = [Path(str(path)) for path in (corpus.src, corpus.tgt)]
    hashes = [hash_file(path) for path in paths]
    if hashes[0] == hashes[1]:
        logger.warning(
            "%s and %s contain the same text, so the model will learn to copy its input", *paths
        )
    return hashes


def check_corpus(corpus: CorpusConfig) -> None:
    """Raise `DataError` if a text file of the corpus is missing or can be read only once."""
    for path in (corpus.src, corpus.tgt):
        if path is not None:
            _check_is_file(Path(path))


def _check_is_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except OSError as error:
        reason = (
            "standard input can be read only once; put the text into a file"
            if str(path) == "-"
            else error.strerror
        )
        raise DataError(f"{path}: {reason}") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(
            f"{path} is a pipe or device, which can be read only once, but training reads the text "
            "several times; put the text into a file"
        )


# Tokenizer


def _find_or_make_tokenizer(config: Config, text: str, folder: Path, given: Path | None) -> Path:
    """Return the tokenizer's folder, which is inside `folder`. It is made if necessary.

    The first of these that is set is used: `given`, the tokenizer of the model `train.init_from`,
    or the models `tokenizer.src_model` and `tokenizer.tgt_model`. If none is set, a tokenizer is
    trained on the training text (`text` is its fingerprint).
    """
    options = config.tokenizer
    if given is None and config.train.init_from is not None:
        given = Path(config.train.init_from) / "tokenizer"
    write: Callable[[Path], None]
    if given is not None:
        # Copy the tokenizer into the cache, because the checkpoint it comes from may be deleted.
        tokenizer = Tokenizer.load(given)
        name, write = tokenizer.hash, tokenizer.save
    elif options.src_model is not None:
        assert options.tgt_model is not None
        name = fingerprint(
            [_sha256_of_model(path) for path in (options.src_model, options.tgt_model)]
        )
        write = partial(copy_models, options)
    else:
        trained_by = options.model_dump(exclude={"max_lossy_share"})
        name = fingerprint(text, trained_by, config.data.on_invalid_utf8)
        write = partial(_train, config)
    return _find_or_make(folder / name, "a tokenizer", partial(_write_with_hash, write))


def _write_with_hash(write: Callable[[Path], None], folder: Path) -> None:
    """Make `folder` atomically. `write` puts a tokenizer into it, and its hash is added."""
    with atomic_dir(folder) as temporary:
        write(temporary)
        (temporary / HASH_FILE).write_text(Tokenizer.load(temporary).hash, encoding="utf-8")


def _open_tokenizer(folder: Path) -> Tokenizer:
    """Open a tokenizer in the cache. Raises `DataError` if its files are damaged."""
    tokenizer = Tokenizer.load(folder)
    if tokenizer.hash != (folder / HASH_FILE).read_text(encoding="utf-8"):
        raise DataError(f"{folder}: the tokenizer is damaged; delete this folder and start again")
    return tokenizer


def _sha256_of_model(path: str) -> str:
    try:
        return sha256_file(Path(path))
    except OSError as error:
        raise ConfigError(f"tokenizer.src_model, tgt_model: {path}: {error.strerror}") from error


def _train(config: Config, folder: Path) -> None:
    """Train the tokenizer of `config` on at most `tokenizer.max_lines` evenly spaced pairs."""
    options = config.tokenizer
    num_pairs = sum(1 for _ in _pairs(config, "count"))
    if not num_pairs:
        raise DataError(
            f"{', '.join(corpus.label for corpus in config.data.train)}: no training pairs"
        )
    kind = "joint" if options.joint else "one per side"
    logger.info(
        "training the tokenizer: %s, %d pieces, %s", options.model_type, options.vocab_size, kind
    )
    stride = -(-num_pairs // options.max_lines)
    train_tokenizer(lambda: islice(_pairs(config, "tokenizer"), 0, None, stride), options, folder)


def _check_vocabulary_can_be_tied(config: Config, tokenizer: Tokenizer) -> None:
    if config.model.tie_embeddings == "all" and not tokenizer.is_joint:
        raise ConfigError(
            "model.tie_embeddings: `all` needs a joint vocabulary, but tokenizer.src_model and "
            "tokenizer.tgt_model have different pieces; use `decoder`"
        )


# Token cache


def _tokenize(config: Config, tokenizer: Tokenizer, folder: Path) -> None:
    """Build the token cache of the training corpora in `folder`, and log what was dropped."""
    manifest = {
        "corpora": [corpus.label for corpus in config.data.train],
        "tokenizer": tokenizer.hash,
    }
    pairs = _pairs(config, "tokenize", log_stats=True)
    logger.info(
        "filters: %s", build_cache(pairs, tokenizer, config.data.filters, folder, manifest)[1]
    )


def _pairs(config: Config, action: str, log_stats: bool = False) -> Iterator[SentencePair]:
    """Yield the pairs of all training corpora, with a progress bar named after `action`."""
    for corpus in config.data.train:
        stats = CorpusStats()
        yield from progress(open_corpus(corpus, config.data, stats), f"{action} {corpus.label}")
        if log_stats:
            logger.info("%s: %s", corpus.label, stats)


def _log_sizes(cache: TokenCache) -> None:
    sizes = (f"{n:,}" for n in (len(cache), *cache.num_tokens.values()))
    logger.info("training data: %s pairs, %s source and %s target subwords", *sizes)


def _check_lossy(cache: TokenCache, max_share: float) -> None:
    """Warn if the tokenizer changes target lines.

    Raises `DataError` if it changes more than the share `max_share` of them.
    """
    lossy = cache.lossy
    if not lossy.count:
        return
    share = lossy.count / lossy.num_lines
    examples = "\n".join(f"  {line}\n  {decoded}" for line, decoded in lossy.examples)
    message = (
        f"the tokenizer changes {lossy.count:,} of {lossy.num_lines:,} target lines ({share:.1%}) "
        "when it encodes and decodes them, so a model cannot learn to write them. Examples, each "
        f"followed by its decoded form:\n{examples}\n"
        "tokenizer.tgt_normalization: none and tokenizer.byte_fallback: true keep every character"
    )
    if share > max_share:
        raise DataError(
            f"{message}; tokenizer.max_lossy_share ({max_share:g}) is the share that is accepted"
        )
    logger.warning("%s", message)
