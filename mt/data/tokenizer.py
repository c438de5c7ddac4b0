"""SentencePiece, one model for both sides or one per side: training with reproducible bytes, ids, and the folder it travels in.

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

import sentencepiece

from mt.config import TokenizerConfig
from mt.data.pieces import RelabeledModel, read_table
from mt.errors import CheckpointError, ConfigError, DataError
from mt.files import sha256_file

logger = logging.getLogger(__name__)

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
SPECIAL_IDS = frozenset({PAD_ID, BOS_ID, EOS_ID})  # those that are no text
WORD_MARK = "\u2581"  # what a piece that begins a word begins with
JOINT_FILE, SRC_FILE, TGT_FILE = "joint.spm", "src.spm", "tgt.spm"
TABLE_FILE = "pieces.json"  # the piece of each id, where that is not the order of the models


class Tokenizer:
    """Text to ids and back, each side by its own model (the same one where the vocabulary is joint)."""

    def __init__(self, src_model: Path, tgt_model: Path, table: Path | None = None) -> None:
        self.src_model, self.tgt_model, self.table = src_model, tgt_model, table
        pieces = None if table is None else read_table(table)
        self._src = _load_model(src_model, pieces)
        self._tgt = self._src if src_model == tgt_model else _load_model(tgt_model, pieces)

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Open a tokenizer folder. Raises `CheckpointError` where a file is missing or is no SentencePiece model."""
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
        """Whether both sides share their ids: one model, or one table."""
        return self._src is self._tgt or self.table is not None

    @property
    def src_vocab_size(self) -> int:
        """Number of source ids."""
        return int(self._src.get_piece_size())

    @property
    def tgt_vocab_size(self) -> int:
        """Number of target ids."""
        return int(self._tgt.get_piece_size())

    @cached_property
    def hash(self) -> str:
        """Names the models, and the table, by their bytes."""
        return "-".join(sha256_file(path)[:16] for path in (self.src_model, self.tgt_model, self.table) if path is not None)

    @cached_property
    def src_pieces(self) -> list[str]:
        """The piece of each source id."""
        return [str(self._src.id_to_piece(i)) for i in range(self.src_vocab_size)]

    @cached_property
    def tgt_pieces(self) -> list[str]:
        """The piece of each target id."""
        return [str(self._tgt.id_to_piece(i)) for i in range(self.tgt_vocab_size)]

    def encode_src(self, lines: Sequence[str]) -> list[list[int]]:
        """Source ids of each line, without an end of sentence."""
        return list(self._src.encode(list(lines)))

    def encode_tgt(self, lines: Sequence[str]) -> list[list[int]]:
        """Target ids of each line, without an end of sentence."""
        return list(self._tgt.encode(list(lines)))

    def decode_src(self, ids: Sequence[int]) -> str:
        """The text of source ids."""
        return str(self._src.decode(list(ids)))

    def decode_tgt(self, ids: Sequence[int]) -> str:
        """The text of target ids, on one line; special ids give nothing."""
        text = str(self._tgt.decode([i for i in ids if i not in SPECIAL_IDS]))
        return text.replace("\n", " ").replace("\r", " ")  # byte pieces can spell a newline

    def src_words(self, lines: Sequence[str]) -> list[list[int]]:
        """Of each of the ids that `encode_src` gives, which of its line's words it is of; -1 where the line has none.

        A word is what whitespace separates in the line as it stands, whatever normalization makes of it: a word that becomes two for the
        model stays one, and two that become one stay two. An id of several words is of the last.
        """
        found = self._src.encode(list(lines), return_type="offset_mapping")
        return [_word_numbers(line, each["pieces"], each["offsets"]) for line, each in zip(lines, found, strict=True)]

    def tgt_words(self, ids: Sequence[int]) -> list[int]:
        """Of each target id, which of the words of `decode_tgt(ids)` it is of; -1 for special ids and where there is no word."""
        found = self._tgt.decode([i for i in ids if i not in SPECIAL_IDS], return_type="offset_mapping")
        words = iter(_word_numbers(found["text"], found["pieces"], found["offsets"]))
        return [-1 if i in SPECIAL_IDS else next(words) for i in ids]

    def starts_word(self, src_id: int) -> bool:
        """Whether a source piece begins a word, so that a line may be split before it."""
        return str(self._src.id_to_piece(src_id)).startswith(WORD_MARK)


def _word_numbers(text: str, pieces: Iterable[str], offsets: Iterable[tuple[int, int]]) -> list[int]:
    """Of pieces that stand at `offsets` of `text`, the number of the word that each ends in; a lone mark belongs to what follows it."""
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


def open_trained(config: TokenizerConfig) -> Tokenizer:
    """The models that the configuration names. Raises `ConfigError` where they lack our special ids."""
    assert config.src_model is not None
    assert config.tgt_model is not None
    try:
        tokenizer = Tokenizer(Path(config.src_model), Path(config.tgt_model))
    except CheckpointError as error:
        raise ConfigError(f"tokenizer.src_model, tgt_model: {error}") from error
    for path, model in ((config.src_model, tokenizer._src), (config.tgt_model, tokenizer._tgt)):
        ids = (model.pad_id(), model.unk_id(), model.bos_id(), model.eos_id())
        if ids != (PAD_ID, UNK_ID, BOS_ID, EOS_ID):
            raise ConfigError(
                f"{path}: pad, unk, bos, eos are {ids}, not {(PAD_ID, UNK_ID, BOS_ID, EOS_ID)}; "
                "train it with --pad_id=0 --unk_id=1 --bos_id=2 --eos_id=3, or let mt train it"
            )
    return tokenizer


def train_tokenizer(lines: Callable[[], Iterable[tuple[str, str]]], config: TokenizerConfig, folder: Path) -> None:
    """Train the models that `config` describes on pairs of text and write them into `folder`.

    `lines` opens the text anew at each call. The same text and configuration give the same bytes on every machine: the text goes in
    through an iterator, because a model file stores the paths it was trained from, and the number of threads is part of `config`.
    Raises `DataError` for text that cannot give the vocabulary asked for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if config.joint:
        (folder / JOINT_FILE).write_bytes(_train((side for pair in lines() for side in pair), config))
    else:
        (folder / SRC_FILE).write_bytes(_train((src for src, _ in lines()), config))
        (folder / TGT_FILE).write_bytes(_train((tgt for _, tgt in lines()), config))


def _train(text: Iterable[str], config: TokenizerConfig) -> bytes:
    model = io.BytesIO()
    raised: list[BaseException] = []
    train = partial(
        sentencepiece.SentencePieceTrainer.train,
        sentence_iterator=_remember_error(_short_lines(text, config.max_line_bytes), raised),
        model_writer=model,
        model_type=config.model_type,
        vocab_size=config.vocab_size,
        character_coverage=config.character_coverage,
        byte_fallback=config.byte_fallback,
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
    return model.getvalue()


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
        logger.warning("tokenizer: %d lines of more than %d bytes left out of its training (tokenizer.max_line_bytes)", too_long, max_bytes)


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
