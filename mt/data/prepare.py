"""Tokenizer and token cache of a configuration: found in `cache_dir`, or made and put there for
every later run.

Both are named by fingerprints of what they were made from, so an unchanged corpus is tokenized
once. Each is made under a lock of its own, so that two runs that start together make it once, and
nobody waits for what is there.
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
from mt.data.tokenizer import Tokenizer, train_tokenizer, write_trained
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

HASH_FILE = "hash"  # of a tokenizer in the cache: what `Tokenizer.hash` was


@dataclass(frozen=True)
class Prepared:
    """What training reads."""

    tokenizer: Tokenizer
    train: TokenCache
    data_fingerprint: str


def prepare(config: Config, world: World = ALONE, tokenizer: Path | None = None) -> Prepared:
    """Open the tokenizer and the token cache of `config`; the first rank makes what is missing.

    `tokenizer` is the folder of the one to use, as a run has it that goes on. Raises `DataError`
    for text that is missing, damaged, unequal or too little.
    """
    made: list[Prepared] = []

    def make() -> tuple[list[str], str, str]:
        made.append(_make(config, tokenizer))
        opened, cache = made[0].tokenizer, made[0].train
        models = [
            str(path)
            for path in (opened.src_model, opened.tgt_model, opened.table)
            if path is not None
        ]
        return models, str(cache.folder), made[0].data_fingerprint

    models, tokens, fingerprint = world.broadcast_from_rank0(make)
    if made:
        return made[0]
    try:
        return Prepared(Tokenizer(*map(Path, models)), TokenCache(Path(tokens)), fingerprint)
    except (OSError, MTError) as error:
        raise DataError(
            f"{error}; cache_dir ({config.cache_dir}) must be a folder that all machines of a run see"
        ) from error


def _make(config: Config, own: Path | None) -> Prepared:
    if not config.data.train:
        raise ConfigError("data.train: no training corpus; give at least one")
    text = text_fingerprint(config)
    cache_dir = _cache_dir(config)
    tokenizer = _tokenizer(config, text, cache_dir / "tokenizers", own)
    if config.model.tie_embeddings == "all" and not tokenizer.is_joint:
        raise ConfigError(
            "model.tie_embeddings: `all` needs a joint vocabulary, but tokenizer.src_model and tokenizer.tgt_model have different pieces; "
            "use `decoder`"
        )
    key = data_fingerprint(text, tokenizer, config)
    return Prepared(
        tokenizer,
        _cache(config, tokenizer, cache_dir / "tokens" / fingerprint(FORMAT_VERSION, key)),
        key,
    )


def _cache_dir(config: Config) -> Path:
    try:
        path = expand_path(config.cache_dir)
    except ValueError as error:
        raise ConfigError(f"cache_dir: {config.cache_dir}: {error}") from error
    if path.startswith("~"):
        raise ConfigError(
            f"cache_dir: {config.cache_dir}: this user has no home folder; choose another, such as cache_dir=cache"
        )
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"cache_dir: {path}: {error.strerror}; choose another, such as cache_dir=cache"
        ) from error
    return Path(path)


def data_fingerprint(text: str, tokenizer: Tokenizer, config: Config) -> str:
    """Names what is trained on: a text by its fingerprint, its tokenizer, and what is left out or
    replaced.
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


def text_fingerprint(config: Config, of_file: Callable[[Path], str] = sha256_text) -> str:
    """Names the training text by its lines: moving or packing a file changes nothing, nor do other
    line ends; changing a line does.

    `of_file` gives the name of one file. Raises `DataError` for what can be read only once, such as
    a pipe.
    """
    return fingerprint(
        [_corpus_fingerprint(corpus, config, of_file) for corpus in config.data.train]
    )


def fingerprint_before_0_2(config: Config, tokenizer: Tokenizer) -> str:
    """What `data_fingerprint` was in the first version of mt, which named a compressed file by its
    packed bytes.
    """
    return data_fingerprint(text_fingerprint(config, sha256_file), tokenizer, config)


def _corpus_fingerprint(
    corpus: CorpusConfig, config: Config, of_file: Callable[[Path], str]
) -> list[str]:
    if corpus.dataset is not None:
        return [
            fingerprint_lines(
                "\n".join(pair).encode() for pair in open_corpus(corpus, config.data, CorpusStats())
            )
        ]
    check_corpus(corpus)
    paths = [Path(str(path)) for path in (corpus.src, corpus.tgt)]
    names = [of_file(path) for path in paths]
    if names[0] == names[1]:
        logger.warning(
            "%s and %s are the same text; a model that copies its input comes of it", *paths
        )
    return names


def check_corpus(corpus: CorpusConfig) -> None:
    """Raise `DataError` for text that is not there, or that is not in a file but can be read only
    once.
    """
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
            f"{path}: a pipe or device, which can be read only once; training reads text again: put it into a file"
        )


def _made_once(folder: Path, what: str, make: Callable[[Path], None]) -> Path:
    """`folder` in the cache; if it is not there, `make` fills it, in one process while others wait."""
    if not folder.exists():
        with locked(folder.parent.parent / "locks" / folder.name, wait_for=what):
            if not folder.exists():
                remove_leftovers(folder.parent, folder.name)
                make(folder)
    return folder


def _pairs(config: Config, what: str, show: bool = False) -> Iterator[SentencePair]:
    for corpus in config.data.train:
        stats = CorpusStats()
        yield from progress(
            open_corpus(corpus, config.data, stats), None, f"{what} {corpus.label}", "pair"
        )
        if show:
            logger.info("%s: %s", corpus.label, stats)


def _tokenizer(config: Config, text: str, folder: Path, own: Path | None) -> Tokenizer:
    if own is None and config.train.init_from is not None:
        own = Path(config.train.init_from) / "tokenizer"
    if own is not None:  # a copy, as checkpoints come and go
        tokenizer = Tokenizer.load(own)
        return _open(
            _made_once(
                folder / tokenizer.hash, "a tokenizer", lambda path: _fill(path, tokenizer.save)
            )
        )
    options = config.tokenizer
    what = options.model_dump(exclude={"max_lossy_share"})
    if options.src_model is not None:
        assert options.tgt_model is not None
        models = [sha256_of_model(path) for path in (options.src_model, options.tgt_model)]
        make = partial(_fill, work=partial(write_trained, options))
        return _open(_made_once(folder / fingerprint(models), "a tokenizer", make))
    make = partial(_fill, work=partial(_train, config))
    return _open(
        _made_once(
            folder / fingerprint(text, what, config.data.on_invalid_utf8), "a tokenizer", make
        )
    )


def _fill(folder: Path, work: Callable[[Path], None]) -> None:
    """Make a folder with a tokenizer in it, and the name of that tokenizer."""
    with atomic_dir(folder) as temporary:
        work(temporary)
        (temporary / HASH_FILE).write_text(Tokenizer.load(temporary).hash, encoding="utf-8")


def _open(folder: Path) -> Tokenizer:
    """The tokenizer in a folder of the cache. Raises `DataError` if it is not what was written."""
    tokenizer = Tokenizer.load(folder)
    if tokenizer.hash != (folder / HASH_FILE).read_text(encoding="utf-8"):
        raise DataError(f"{folder}: a damaged tokenizer; delete this folder and start again")
    return tokenizer


def sha256_of_model(path: str) -> str:
    """Names a SentencePiece model by its bytes. Raises `ConfigError` where it cannot be read."""
    try:
        return sha256_file(Path(path))
    except OSError as error:
        raise ConfigError(f"tokenizer.src_model, tgt_model: {path}: {error.strerror}") from error


def _train(config: Config, folder: Path) -> None:
    """Train the tokenizer of `config` into a folder."""
    options = config.tokenizer
    num_pairs = sum(1 for _ in _pairs(config, "count"))
    if not num_pairs:
        raise DataError(
            f"{', '.join(corpus.label for corpus in config.data.train)}: no training pairs"
        )
    kind = "joint" if options.joint else "one a side"
    logger.info(
        "training the tokenizer: %s, %d pieces, %s", options.model_type, options.vocab_size, kind
    )
    stride = -(-num_pairs // options.max_lines)
    train_tokenizer(lambda: islice(_pairs(config, "tokenizer"), 0, None, stride), options, folder)


def _cache(config: Config, tokenizer: Tokenizer, folder: Path) -> TokenCache:
    def make(folder: Path) -> None:
        about = {
            "corpora": [corpus.label for corpus in config.data.train],
            "tokenizer": tokenizer.hash,
        }
        pairs = _pairs(config, "tokenize", show=True)
        _, stats = build_cache(pairs, tokenizer, config.data.filters, folder, about)
        logger.info("filters: %s", stats)

    cache = TokenCache(_made_once(folder, "the tokenized corpus", make))
    sizes = (f"{n:,}" for n in (len(cache), *cache.num_tokens.values()))
    logger.info("training data: %s pairs, %s source and %s target subwords", *sizes)
    _check_lossy(cache, config.tokenizer.max_lossy_share)
    return cache


def _check_lossy(cache: TokenCache, max_share: float) -> None:
    """Say how many target lines the tokenizer does not give back. Raises `DataError` if they are
    too many.
    """
    lossy = cache.lossy
    if not lossy.count:
        return
    share = lossy.count / lossy.num_lines
    shown = [f"  {line}\n  {back}" for line, back in lossy.examples]
    told = "\n".join([
        f"{lossy.count:,} of {lossy.num_lines:,} target lines ({share:.1%}) do not come back from the tokenizer as they are; a model "
        "cannot learn to write them. Such as, with what comes back:",
        *shown,
    ])  # fmt: skip
    remedy = (
        "tokenizer.tgt_normalization: none and tokenizer.byte_fallback: true keep every character"
    )
    if share > max_share:
        raise DataError(
            f"{told}\n{remedy}; tokenizer.max_lossy_share ({max_share:g}) is how many are accepted"
        )
    logger.warning("%s\n%s", told, remedy)
