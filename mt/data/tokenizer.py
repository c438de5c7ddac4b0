"""The tokenizer: SentencePiece models that turn text into ids and back.

The source and the target side share one model, or each has its own. All models use the same special
ids: 0 for padding, 1 for unknown, 2 for beginning of sentence, and 3 for end of sentence.
"""

import io
import logging
import re
import shutil
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from unicodedata import category

import sentencepiece

from mt.config import Normalization, TokenizerConfig
from mt.data.relabeled import RelabeledModel, read_table
from mt.data.spm import SENTENCEPIECE_RULES, normalizer, with_normalization, with_special_ids
from mt.errors import CheckpointError, ConfigError, DataError
from mt.files import sha256_file

logger = logging.getLogger(__name__)

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
ROLES = (("pad", PAD_ID), ("unk", UNK_ID), ("bos", BOS_ID), ("eos", EOS_ID))
SPECIAL_IDS = frozenset({PAD_ID, BOS_ID, EOS_ID})  # ids that have no text
WORD_MARK = "\u2581"  # the first character of a piece that starts a word
JOINT_FILE, SRC_FILE, TGT_FILE = "joint.spm", "src.spm", "tgt.spm"
TABLE_FILE = "pieces.json"  # lists the pieces in id order, if the models have other ids


class Tokenizer:
    """Turns text into ids and back, with a SentencePiece model for each side.

    `table` is a file that lists the pieces in id order, if the models have other ids.
    """

    def __init__(self, src_model: Path, tgt_model: Path, table: Path | None = None) -> None:
        self.src_model, self.tgt_model, self.table = src_model, tgt_model, table
        src_pieces, tgt_pieces = (None, None) if table is None else read_table(table)
        self._src = _load_model(src_model, src_pieces)
        is_same = src_model == tgt_model and src_pieces == tgt_pieces
        self._tgt = self._src if is_same else _load_model(tgt_model, tgt_pieces)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Open a tokenizer folder. Raises `CheckpointError` if a file is missing or damaged."""
        joint, table = folder / JOINT_FILE, folder / TABLE_FILE
        models = (joint, joint) if joint.exists() else (folder / SRC_FILE, folder / TGT_FILE)
        return cls(*models, table if table.exists() else None)

    def save(self, folder: Path) -> None:
        """Copy the models into a folder that `load` can open."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.table is not None:
            shutil.copyfile(self.table, folder / TABLE_FILE)
        if self._src is self._tgt:
            shutil.copyfile(self.src_model, folder / JOINT_FILE)
        else:
            shutil.copyfile(self.src_model, folder / SRC_FILE)
            shutil.copyfile(self.tgt_model, folder / TGT_FILE)

    @property
    def is_joint(self) -> bool:
        """Whether both sides have the same pieces and ids. Their normalization may still differ."""
        return self._src is self._tgt or self.src_pieces == self.tgt_pieces

    @property
    def src_vocab_size(self) -> int:
        """The number of source ids."""
        return int(self._src.get_piece_size())

    @property
    def tgt_vocab_size(self) -> int:
        """The number of target ids."""
        return int(self._tgt.get_piece_size())

    @property
    def vocab_sizes(self) -> tuple[int, int]:
        """The numbers of source ids and target ids."""
        return self.src_vocab_size, self.tgt_vocab_size

    @cached_property
    def hash(self) -> str:
        """A hash of the model files and the table."""
        paths = (self.src_model, self.tgt_model, self.table)
        return "-".join(sha256_file(path)[:16] for path in paths if path is not None)

    @cached_property
    def src_pieces(self) -> list[str]:
        """The piece of each source id."""
        return [str(self._src.id_to_piece(i)) for i in range(self.src_vocab_size)]

    @cached_property
    def tgt_pieces(self) -> list[str]:
        """The piece of each target id."""
        return [str(self._tgt.id_to_piece(i)) for i in range(self.tgt_vocab_size)]

    def encode_src(self, lines: Sequence[str]) -> list[list[int]]:
        """Return the source ids of each line, without the end-of-sentence token.

        A line of only white space and invisible characters gives an empty list.
        """
        return list(self._src.encode(_visible(lines)))

    def encode_tgt(self, lines: Sequence[str]) -> list[list[int]]:
        """Return the target ids of each line, or [] if it is blank, without the end token."""
        return list(self._tgt.encode([line if line.strip() else "" for line in lines]))

    def decode_src(self, ids: Sequence[int]) -> str:
        """Return the text of source ids."""
        return str(self._src.decode(list(ids)))

    def decode_tgt(self, ids: Sequence[int]) -> str:
        """Return the text of target ids as one line. Special ids are ignored."""
        return self.decode_tgt_lines([ids])[0]

    def decode_tgt_lines(self, lines: Sequence[Sequence[int]]) -> list[str]:
        """Decode many lines in one call, which is faster than `decode_tgt` for each line."""
        texts = self._tgt.decode([[i for i in ids if i not in SPECIAL_IDS] for ids in lines])
        return [text.replace("\n", " ") for text in texts]  # byte pieces can produce a newline

    def src_words(self, lines: Sequence[str]) -> list[list[int]]:
        """For each id in `encode_src(lines)`, return the index of the word it belongs to.

        The words are those of the original line, separated by white space, even if normalization
        joins or splits them. An id that covers several words belongs to the last one. If a line
        has no words, the index is -1.
        """
        mappings = self._src.encode(_visible(lines), return_type="offset_mapping")
        return [
            _word_indices(line, mapping["pieces"], mapping["offsets"])
            for line, mapping in zip(lines, mappings, strict=True)
        ]

    def tgt_words(self, ids: Sequence[int]) -> list[int]:
        """For each id, return the index of the word in `decode_tgt(ids)` it belongs to.

        The index is -1 for special ids, or if the text has no words.
        """
        text_ids = [i for i in ids if i not in SPECIAL_IDS]
        mapping = self._tgt.decode(text_ids, return_type="offset_mapping")
        words = iter(_word_indices(mapping["text"], mapping["pieces"], mapping["offsets"]))
        return [-1 if i in SPECIAL_IDS else next(words) for i in ids]

    def starts_word(self, src_id: int) -> bool:
        """Whether a source piece starts a word, so that lines can be split before this piece."""
        return str(self._src.id_to_piece(src_id)).startswith(WORD_MARK)


def _visible(lines: Sequence[str]) -> list[str]:
    """Replace lines that have only white space and invisible characters by empty lines."""
    return [
        line if any(not c.isspace() and category(c) not in ("Cc", "Cf") for c in line) else ""
        for line in lines
    ]


def _word_indices(
    text: str, pieces: Iterable[str], offsets: Iterable[tuple[int, int]]
) -> list[int]:
    """Return the index of the word in which each piece ends.

    A piece that consists of just a `WORD_MARK` belongs to the word after it.
    """
    word_ends = [word.end() for word in re.finditer(r"\S+", text)]
    indices = []
    for piece, (begin, end) in zip(pieces, offsets, strict=True):
        last = end if piece == WORD_MARK else begin + max(0, len(text[begin:end].rstrip()) - 1)
        indices.append(min(bisect_right(word_ends, last), len(word_ends) - 1))
    return indices


def _load_model(path: Path, pieces: list[str] | None) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such SentencePiece model")
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a SentencePiece model: {error}") from error
    return model if pieces is None else RelabeledModel(model, pieces, UNK_ID)


def copy_models(config: TokenizerConfig, folder: Path) -> None:
    """Copy the models of `src_model` and `tgt_model` into a folder that `Tokenizer.load` can open.

    If a model has other special ids than this module, its special pieces are moved, and the other
    pieces keep their order. Raises `ConfigError` if a model cannot be used.
    """
    assert config.src_model is not None
    assert config.tgt_model is not None
    folder.mkdir(parents=True, exist_ok=True)
    if config.src_model == config.tgt_model:
        models = [(JOINT_FILE, "tokenizer.src_model, tgt_model", config.src_model)]
    else:
        models = [
            (SRC_FILE, "tokenizer.src_model", config.src_model),
            (TGT_FILE, "tokenizer.tgt_model", config.tgt_model),
        ]
    for name, option, path in models:
        (folder / name).write_bytes(_with_standard_ids(option, Path(path)))


def _with_standard_ids(option: str, path: Path) -> bytes:
    """Read a model file, and give it the special ids of this module."""
    try:
        model = _load_model(path, None)
    except CheckpointError as error:
        raise ConfigError(f"{option}: {error}") from error
    if tuple(getattr(model, f"{role}_id")() for role, _ in ROLES) == tuple(i for _, i in ROLES):
        return path.read_bytes()
    try:
        return with_special_ids(path.read_bytes(), ROLES)
    except ValueError as error:
        raise ConfigError(
            f"{option}: {path}: cannot use the special pieces of this model: {error}"
        ) from error


def train_tokenizer(
    open_pairs: Callable[[], Iterable[tuple[str, str]]], config: TokenizerConfig, folder: Path
) -> None:
    """Train the models that `config` describes on pairs of text and write them into `folder`.

    Each call of `open_pairs` must start at the first pair again. The same text and configuration
    give the same bytes on every machine. If the vocabulary is joint but the two sides have
    different normalizations, two models are written that differ only in their normalization. Raises
    `DataError` if there is no text, or if `vocab_size` is too small or too large for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rules = {SRC_FILE: config.src_normalization, TGT_FILE: config.tgt_normalization}
    if not config.joint:
        for side, (name, rule) in enumerate(rules.items()):
            (folder / name).write_bytes(_train((pair[side] for pair in open_pairs()), config, rule))
    elif config.src_normalization == config.tgt_normalization:
        (folder / JOINT_FILE).write_bytes(
            _train(
                (line for pair in open_pairs() for line in pair), config, config.tgt_normalization
            )
        )
    else:
        normalizers = [normalizer(rule) for rule in rules.values()]
        text = (
            normalized(line)
            for pair in open_pairs()
            for normalized, line in zip(normalizers, pair, strict=True)
        )
        model = _train(text, config, "none")
        for name, rule in rules.items():
            (folder / name).write_bytes(with_normalization(model, rule))


def _train(text: Iterable[str], config: TokenizerConfig, rule: Normalization) -> bytes:
    model = io.BytesIO()
    raised: list[BaseException] = []
    is_known = rule in SENTENCEPIECE_RULES
    if not is_known:
        text = map(normalizer(rule), text)
    # The text is given as an iterator because a model trained on files would store their paths.
    train = partial(
        sentencepiece.SentencePieceTrainer.train,
        sentence_iterator=_remember_error(_short_lines(text, config.max_line_bytes), raised),
        model_writer=model,
        model_type=config.model_type,
        vocab_size=config.vocab_size,
        character_coverage=config.character_coverage,
        byte_fallback=config.byte_fallback,
        normalization_rule_name=SENTENCEPIECE_RULES.get(rule, "identity"),
        user_defined_symbols=config.user_defined_symbols,
        max_sentence_length=config.max_line_bytes,
        num_threads=config.num_threads,
        pad_id=PAD_ID,
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        train_extremely_large_corpus=False,
        minloglevel=2,
    )
    try:
        _in_thread(train)
    except (RuntimeError, OSError) as error:
        if raised:
            raise raised[0] from None
        raise DataError(_explain(str(error), config)) from error
    return model.getvalue() if is_known else with_normalization(model.getvalue(), rule)


def _in_thread(work: Callable[[], None]) -> None:
    """Run a library call that can take minutes in a thread, so that signals can interrupt it."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, name="mt-tokenizer", daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]


def _remember_error(text: Iterable[str], raised: list[BaseException]) -> Iterator[str]:
    """Yield the lines of `text`. If that raises an error, append it to `raised`.

    SentencePiece turns the error into a RuntimeError. The caller raises the original error instead.
    """
    try:
        yield from text
    except (Exception, KeyboardInterrupt) as error:
        raised.append(error)
        raise


def _short_lines(text: Iterable[str], max_bytes: int) -> Iterator[str]:
    """Yield the lines that have at most `max_bytes` bytes, and warn about the others."""
    num_long = 0
    for line in text:
        if len(line.encode()) > max_bytes:
            num_long += 1
        else:
            yield line
    if num_long:
        logger.warning(
            "tokenizer: not trained on %d lines of more than %d bytes (tokenizer.max_line_bytes)",
            num_long,
            max_bytes,
        )


def _explain(error: str, config: TokenizerConfig) -> str:
    """Turn SentencePiece's error message into a message about the options in `config`."""
    vocab_size = f"tokenizer.vocab_size: {config.vocab_size}"
    if limit := re.search(r"value <= (\d+)", error):
        return f"{vocab_size} is too large for this text; set it to at most {limit[1]}"
    if required := re.search(r"(\d+) vs (\d+)", error):
        return (
            f"{vocab_size} is too small: the characters of this text and the special pieces alone "
            f"need {required[2]}; set at least that, or lower tokenizer.character_coverage"
        )
    if "!sentences_.empty()" in error:
        return "there is no text to train the tokenizer on"
    return f"SentencePiece cannot train this tokenizer: {error}"
