"""SentencePiece, one model for both sides or one per side: training, ids, and its folder.

Special ids are the same in every model: padding 0, unknown 1, beginning 2, end of sentence 3.
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
from unicodedata import category, normalize

import sentencepiece

from mt.config import Normalization, TokenizerConfig
from mt.data.relabeled import RelabeledModel, read_table
from mt.data.spm import SENTENCEPIECE_RULES, with_normalization, with_special_ids
from mt.errors import CheckpointError, ConfigError, DataError
from mt.files import sha256_file

logger = logging.getLogger(__name__)

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
ROLES = (("pad", PAD_ID), ("unk", UNK_ID), ("bos", BOS_ID), ("eos", EOS_ID))
SPECIAL_IDS = frozenset({PAD_ID, BOS_ID, EOS_ID})  # those that are no text
WORD_MARK = "\u2581"  # what a piece that begins a word begins with
JOINT_FILE, SRC_FILE, TGT_FILE = "joint.spm", "src.spm", "tgt.spm"
TABLE_FILE = "pieces.json"  # the piece of each id, where that is not the order of the models


class Tokenizer:
    """Text to ids and back, each side by its own model; a joint vocabulary has one for both."""

    def __init__(self, src_model: Path, tgt_model: Path, table: Path | None = None) -> None:
        self.src_model, self.tgt_model, self.table = src_model, tgt_model, table
        src_pieces, tgt_pieces = (None, None) if table is None else read_table(table)
        self._src = _load_model(src_model, src_pieces)
        is_same = src_model == tgt_model and src_pieces == tgt_pieces
        self._tgt = self._src if is_same else _load_model(tgt_model, tgt_pieces)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Open a tokenizer folder. Raises `CheckpointError` for a missing or damaged file."""
        joint, table = folder / JOINT_FILE, folder / TABLE_FILE
        models = (joint, joint) if joint.exists() else (folder / SRC_FILE, folder / TGT_FILE)
        return cls(*models, table if table.exists() else None)

    def save(self, folder: Path) -> None:
        """Write the models into a folder that `load` opens."""
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
        """Whether both sides share their ids; their models may still normalize differently."""
        return self._src is self._tgt or self.src_pieces == self.tgt_pieces

    @property
    def src_vocab_size(self) -> int:
        """Number of source ids."""
        return int(self._src.get_piece_size())

    @property
    def tgt_vocab_size(self) -> int:
        """Number of target ids."""
        return int(self._tgt.get_piece_size())

    @property
    def vocab_sizes(self) -> tuple[int, int]:
        """Number of source ids, and of target ids."""
        return self.src_vocab_size, self.tgt_vocab_size

    @cached_property
    def hash(self) -> str:
        """Names the models, and the table, by their bytes."""
        return "-".join(
            sha256_file(path)[:16]
            for path in (self.src_model, self.tgt_model, self.table)
            if path is not None
        )

    @cached_property
    def src_pieces(self) -> list[str]:
        """The piece of each source id."""
        return [str(self._src.id_to_piece(i)) for i in range(self.src_vocab_size)]

    @cached_property
    def tgt_pieces(self) -> list[str]:
        """The piece of each target id."""
        return [str(self._tgt.id_to_piece(i)) for i in range(self.tgt_vocab_size)]

    def encode_src(self, lines: Sequence[str]) -> list[list[int]]:
        """Source ids of each line, without an end of sentence; none for an invisible line."""
        return list(self._src.encode(_visible(lines)))

    def encode_tgt(self, lines: Sequence[str]) -> list[list[int]]:
        """Target ids of each line, without an end of sentence; none for a line of white space."""
        return list(self._tgt.encode([line if line.strip() else "" for line in lines]))

    def decode_src(self, ids: Sequence[int]) -> str:
        """The text of source ids."""
        return str(self._src.decode(list(ids)))

    def decode_tgt(self, ids: Sequence[int]) -> str:
        """The text of target ids, on one line; special ids give nothing."""
        return self.decode_tgt_lines([ids])[0]

    def decode_tgt_lines(self, lines: Sequence[Sequence[int]]) -> list[str]:
        """`decode_tgt` of many lines in one call, which is faster."""
        texts = self._tgt.decode([[i for i in ids if i not in SPECIAL_IDS] for ids in lines])
        return [text.replace("\n", " ") for text in texts]  # byte pieces can spell a newline

    def src_words(self, lines: Sequence[str]) -> list[list[int]]:
        """The index of the word that each id of `encode_src` belongs to; -1: to none.

        A word is what whitespace separates in the line, whatever normalization makes of it. An id
        of several words is of the last.
        """
        found = self._src.encode(_visible(lines), return_type="offset_mapping")
        return [
            _word_numbers(line, each["pieces"], each["offsets"])
            for line, each in zip(lines, found, strict=True)
        ]

    def tgt_words(self, ids: Sequence[int]) -> list[int]:
        """The index of the word of `decode_tgt(ids)` that each target id belongs to; -1: to none."""
        found = self._tgt.decode(
            [i for i in ids if i not in SPECIAL_IDS], return_type="offset_mapping"
        )
        words = iter(_word_numbers(found["text"], found["pieces"], found["offsets"]))
        return [-1 if i in SPECIAL_IDS else next(words) for i in ids]

    def starts_word(self, src_id: int) -> bool:
        """Whether a source piece begins a word, so that a line may be split before it."""
        return str(self._src.id_to_piece(src_id)).startswith(WORD_MARK)


def _visible(lines: Sequence[str]) -> list[str]:
    """The lines; an empty one for each that has only white space and invisible characters."""
    return [
        line if any(not c.isspace() and category(c) not in ("Cc", "Cf") for c in line) else ""
        for line in lines
    ]


def _word_numbers(
    text: str, pieces: Iterable[str], offsets: Iterable[tuple[int, int]]
) -> list[int]:
    """The index of the word that each piece ends in; a lone mark belongs to what follows it."""
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    numbers = []
    for piece, (begin, end) in zip(pieces, offsets, strict=True):
        place = end if piece == WORD_MARK else begin + max(0, len(text[begin:end].rstrip()) - 1)
        numbers.append(min(bisect_right(ends, place), len(ends) - 1))
    return numbers


def _load_model(path: Path, pieces: list[str] | None) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such SentencePiece model")
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{path}: not a SentencePiece model: {error}") from error
    return model if pieces is None else RelabeledModel(model, pieces, UNK_ID)


def write_trained(config: TokenizerConfig, folder: Path) -> None:
    """Write the models that `src_model` and `tgt_model` name into a folder for `Tokenizer.load`.

    If a model has other special ids than ours, such as SentencePiece's defaults, they move to
    ours, and all other pieces keep their order. Raises `ConfigError`.
    """
    assert config.src_model is not None
    assert config.tgt_model is not None
    folder.mkdir(parents=True, exist_ok=True)
    if config.src_model == config.tgt_model:
        (folder / JOINT_FILE).write_bytes(
            _with_our_ids("tokenizer.src_model, tgt_model", Path(config.src_model))
        )
    else:
        (folder / SRC_FILE).write_bytes(
            _with_our_ids("tokenizer.src_model", Path(config.src_model))
        )
        (folder / TGT_FILE).write_bytes(
            _with_our_ids("tokenizer.tgt_model", Path(config.tgt_model))
        )


def _with_our_ids(option: str, path: Path) -> bytes:
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
            f"{option}: {path}: its special pieces cannot be used: {error}"
        ) from error


def train_tokenizer(
    lines: Callable[[], Iterable[tuple[str, str]]], config: TokenizerConfig, folder: Path
) -> None:
    """Train the models that `config` describes on pairs of text and write them into `folder`.

    `lines` opens the text again at each call. The same text and configuration give the same bytes
    on every machine: a model file stores the paths of its text, hence the iterator. A joint
    vocabulary of sides with different normalizations is two models that differ in nothing else.
    Raises `DataError` for text that cannot give the vocabulary asked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rules = {SRC_FILE: config.src_normalization, TGT_FILE: config.tgt_normalization}
    if not config.joint:
        for side, (name, rule) in enumerate(rules.items()):
            (folder / name).write_bytes(_train((pair[side] for pair in lines()), config, rule))
    elif config.src_normalization == config.tgt_normalization:
        (folder / JOINT_FILE).write_bytes(
            _train((side for pair in lines() for side in pair), config, config.tgt_normalization)
        )
    else:
        change = [_normalizer(rule) for rule in rules.values()]
        text = (
            normalized(side)
            for pair in lines()
            for normalized, side in zip(change, pair, strict=True)
        )
        model = _train(text, config, "none")
        for name, rule in rules.items():
            (folder / name).write_bytes(with_normalization(model, rule))


def _normalizer(rule: Normalization) -> Callable[[str], str]:
    """What text looks like to a model of this normalization."""
    if rule == "none":
        return str
    if rule == "nfc":
        return partial(normalize, "NFC")
    normalizer = sentencepiece.SentencePieceNormalizer(
        rule_name=rule,
        add_dummy_prefix=False,
        escape_whitespaces=False,
        remove_extra_whitespaces=False,
    )
    return lambda line: str(normalizer.normalize(line))


def _train(text: Iterable[str], config: TokenizerConfig, rule: Normalization) -> bytes:
    model = io.BytesIO()
    raised: list[BaseException] = []
    is_known = rule in SENTENCEPIECE_RULES
    if not is_known:
        text = map(_normalizer(rule), text)
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
    """Do what takes minutes in a single call, so that a signal does not wait for its end."""
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
    """SentencePiece turns what its iterator raises into a RuntimeError; here it is kept as it was."""
    try:
        yield from text
    except (Exception, KeyboardInterrupt) as error:
        raised.append(error)
        raise


def _short_lines(text: Iterable[str], max_bytes: int) -> Iterator[str]:
    too_long = 0
    for line in text:
        if len(line.encode()) > max_bytes:
            too_long += 1
        else:
            yield line
    if too_long:
        logger.warning(
            "tokenizer: %d lines of more than %d bytes left out of its training (tokenizer.max_line_bytes)",
            too_long,
            max_bytes,
        )


def _explain(error: str, config: TokenizerConfig) -> str:
    """SentencePiece's complaint in terms of our options."""
    asked = f"tokenizer.vocab_size: {config.vocab_size}"
    if limit := re.search(r"value <= (\d+)", error):
        return f"{asked} is more than this text can give; at most {limit[1]}"
    if required := re.search(r"(\d+) vs (\d+)", error):
        return (
            f"{asked} is too small: the characters of this text and the special pieces alone need {required[2]} "
            "(or lower tokenizer.character_coverage)"
        )
    if "!sentences_.empty()" in error:
        return "the tokenizer has no text to be trained on"
    return f"SentencePiece cannot train this tokenizer: {error}"
