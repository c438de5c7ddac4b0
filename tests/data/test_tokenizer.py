"""Test `mt.data.tokenizer` and `mt.data.relabeled`: training is reproducible, text survives a round
trip, ids are mapped to words, and SentencePiece errors become messages about our options.
"""

import logging
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from mt.config import TokenizerConfig
from mt.data.sources import SentencePair
from mt.data.tokenizer import (
    BOS_ID,
    EOS_ID,
    PAD_ID,
    UNK_ID,
    Tokenizer,
    copy_models,
    train_tokenizer,
)
from mt.errors import CheckpointError, ConfigError, DataError


def train(pairs: list[SentencePair], folder: Path, **options: Any) -> Tokenizer:
    train_tokenizer(
        lambda: pairs, TokenizerConfig(**{"num_threads": 1, "vocab_size": 450, **options}), folder
    )
    return Tokenizer.load(folder)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def normalized(tokenizer: Tokenizer, text: str) -> str:
    """Normalize text as the target model does. The result has plain spaces."""
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.tgt_model))
    return (
        processor.normalize(text if text.strip() else "")
        .replace("\u2581", " ")
        .removeprefix(" ")
        .replace("\n", " ")
    )


# Training


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_the_same_text_gives_the_same_bytes(
    tmp_path: Path, sample_pairs: list[SentencePair], model_type: str, num_threads: int
) -> None:
    for name in ("a", "b"):
        train(
            sample_pairs,
            tmp_path / "somewhere" / name,
            model_type=model_type,
            num_threads=num_threads,
        )
    assert files(tmp_path / "somewhere" / "a") == files(tmp_path / "somewhere" / "b")


def test_a_joint_model_serves_both_sides(tmp_path: Path, sample_pairs: list[SentencePair]) -> None:
    tokenizer = train(sample_pairs, tmp_path)
    # The two files differ only in their normalization.
    assert sorted(files(tmp_path)) == ["src.spm", "tgt.spm"]
    assert tokenizer.is_joint
    assert tokenizer.src_pieces == tokenizer.tgt_pieces
    assert tokenizer.src_vocab_size == tokenizer.tgt_vocab_size == 450
    assert tokenizer.encode_src(list(sample_pairs[0])) == tokenizer.encode_tgt(
        list(sample_pairs[0])
    )


def test_separate_models_are_each_trained_on_their_side_only(
    tmp_path: Path, sample_pairs: list[SentencePair]
) -> None:
    tokenizer = train(sample_pairs, tmp_path / "both", joint=False)
    assert not tokenizer.is_joint
    for side, file in enumerate(("src.spm", "tgt.spm")):
        alone = [SentencePair(pair[side], pair[side]) for pair in sample_pairs]
        train(alone, tmp_path / file, joint=False)
        assert (tmp_path / "both" / file).read_bytes() == (tmp_path / file / file).read_bytes()
    line = sample_pairs[0].src
    assert tokenizer.encode_src([line]) != tokenizer.encode_tgt([line])


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_too_large_a_vocabulary_names_a_size_that_works(
    tmp_path: Path, sample_pairs: list[SentencePair], model_type: str
) -> None:
    few = sample_pairs[:20]
    with pytest.raises(
        DataError,
        match=r"^tokenizer.vocab_size: 5000 is too large for this text; set it to at most \d+$",
    ) as caught:
        train(few, tmp_path, model_type=model_type, vocab_size=5000)
    limit = int(str(caught.value).split()[-1])
    assert train(few, tmp_path, model_type=model_type, vocab_size=limit).src_vocab_size == limit
    with pytest.raises(DataError, match=f"at most {limit}"):
        train(few, tmp_path, model_type=model_type, vocab_size=limit + 1)


@pytest.mark.parametrize("byte_fallback", [True, False])
@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_too_small_a_vocabulary_names_a_size_that_works(
    tmp_path: Path, sample_pairs: list[SentencePair], model_type: str, byte_fallback: bool
) -> None:
    options = {"model_type": model_type, "byte_fallback": byte_fallback}
    with pytest.raises(
        DataError, match=r"^tokenizer.vocab_size: 8 is too small: .* alone need \d+;"
    ) as caught:
        train(sample_pairs, tmp_path, **options, vocab_size=8)
    needed = int(re.findall(r"need (\d+)", str(caught.value))[0])
    assert train(sample_pairs, tmp_path, **options, vocab_size=needed).src_vocab_size == needed
    with pytest.raises(DataError, match="too small"):
        train(sample_pairs, tmp_path, **options, vocab_size=needed - 1)


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_no_text_is_refused(tmp_path: Path, model_type: str) -> None:
    with pytest.raises(DataError, match="no text to train the tokenizer on"):
        train([], tmp_path, model_type=model_type)


def test_long_lines_are_not_used_for_training_and_are_counted(
    tmp_path: Path,
    sample_pairs: list[SentencePair],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Calling `setup_logging` in another test may have turned propagation off.
    monkeypatch.setattr(logging.getLogger("mt"), "propagate", True)
    long = SentencePair("ä" * 101, "x" * 201)  # both over 200 bytes
    at_the_limit = SentencePair("ä" * 100, "x" * 200)
    with caplog.at_level(logging.WARNING, logger="mt"):
        train([*sample_pairs, at_the_limit], tmp_path / "a", max_line_bytes=200)
        assert caplog.messages == []
        train([*sample_pairs, long, at_the_limit, long], tmp_path / "b", max_line_bytes=200)
    assert len(caplog.messages) == 1
    assert "not trained on 4 lines of more than 200 bytes" in caplog.messages[0]
    assert files(tmp_path / "a") == files(tmp_path / "b")


@pytest.mark.parametrize(
    "error",
    [DataError("train.de:601: not UTF-8"), KeyboardInterrupt("train.de:601: not UTF-8")],
    ids=repr,
)
def test_an_error_while_reading_the_text_is_raised_unchanged(
    tmp_path: Path, sample_pairs: list[SentencePair], error: BaseException
) -> None:
    def lines() -> Iterator[SentencePair]:
        yield from sample_pairs
        raise error

    with pytest.raises(type(error), match=r"^train.de:601: not UTF-8$"):
        train_tokenizer(lines, TokenizerConfig(vocab_size=450, num_threads=1), tmp_path)


# Text to ids and back


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_the_training_text_round_trips(
    tmp_path: Path, sample_pairs: list[SentencePair], model_type: str
) -> None:
    tokenizer = train(sample_pairs, tmp_path, model_type=model_type)
    lines = [line for pair in sample_pairs for line in pair]
    ids = tokenizer.encode_tgt(lines)
    assert (
        [tokenizer.decode_tgt(row) for row in ids]
        == [normalized(tokenizer, line) for line in lines]
        == lines
    )
    assert not {PAD_ID, UNK_ID, BOS_ID, EOS_ID} & {i for row in ids for i in row}


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_any_text_is_decoded_to_its_normalized_form(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_tgt([text])[0]
    # Characters that have no piece of their own are encoded as bytes.
    assert not {PAD_ID, UNK_ID, BOS_ID, EOS_ID} & set(ids)
    assert tokenizer.decode_tgt(ids) == normalized(tokenizer, text)


@pytest.mark.parametrize("text", ["日本語", "Привет", "😀👍🏽", "Σ≠∞", "naïve ĝ"])
def test_characters_never_seen_round_trip_through_bytes(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode_tgt(tokenizer.encode_tgt([text])[0]) == text


def test_without_byte_fallback_an_unseen_character_is_unknown(
    tmp_path: Path, sample_pairs: list[SentencePair]
) -> None:
    tokenizer = train(sample_pairs, tmp_path, byte_fallback=False, vocab_size=300)
    assert UNK_ID in tokenizer.encode_src(["日"])[0]


@pytest.mark.parametrize("text", ["", " ", " \t\n", "\u200b", "\u00a0\ufeff\u00ad", "\x01"])
def test_empty_text_has_no_ids(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode_src([text, "a", text])[::2] == [[], []]
    assert tokenizer.decode_tgt([]) == ""


def test_no_lines_have_no_ids(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_src([]) == []


@given(ids=st.lists(st.integers(0, 499)))
def test_any_ids_decode_to_one_line(tokenizer: Tokenizer, ids: list[int]) -> None:
    text = tokenizer.decode_tgt(ids)
    assert "\n" not in text
    text.encode()  # raises an error if the text has lone surrogates


def test_a_newline_from_byte_pieces_becomes_a_space(tokenizer: Tokenizer) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.tgt_model))
    a, newline = (processor.piece_to_id(piece) for piece in ("\u2581a", "<0x0A>"))
    assert newline != UNK_ID
    assert processor.decode([newline]) == "\n"
    assert tokenizer.decode_tgt([newline, a, newline]).count(" ") >= 2


def test_special_ids_decode_to_nothing(
    tokenizer: Tokenizer, sample_pairs: list[SentencePair]
) -> None:
    line = sample_pairs[0].tgt
    ids = tokenizer.encode_tgt([line])[0]
    assert tokenizer.decode_tgt([BOS_ID, *ids, EOS_ID, PAD_ID, PAD_ID]) == line


def test_there_are_as_many_pieces_that_start_a_word_as_words(
    tokenizer: Tokenizer, sample_pairs: list[SentencePair]
) -> None:
    for src, _ in sample_pairs[:100]:
        ids = tokenizer.encode_src([src])[0]
        assert sum(map(tokenizer.starts_word, ids)) == len(src.split())


# Words


SPACES = ["  ", "\u00a0", "\t", "\u3000", "\u2028", " \u2003 "]
WORDS = [
    "Hund", "gel\u00e4ufig", ".", "\u00bd", "a\u00b4b", "\u2026", "a\u200bb", "\ufb01n",
    "\U0001f600", "\u65e5\u672c\u8a9e", "e\u0301", "\u2581x", "a\u00ad", "a\ufeff",
]  # fmt: skip


@given(
    words=st.lists(st.sampled_from(WORDS), max_size=6),
    spaces=st.lists(st.sampled_from(SPACES), min_size=7),
)
def test_a_source_id_belongs_to_the_word_that_it_comes_from(
    tokenizer: Tokenizer, words: list[str], spaces: list[str]
) -> None:
    """Use all kinds of white space, and words into which normalization inserts spaces."""
    line = "".join(space + word for space, word in zip(spaces, words, strict=False))
    expected = [number for number, ids in enumerate(tokenizer.encode_src(words)) for _ in ids]
    assert len(line.split()) == len(words)
    assert tokenizer.src_words([line]) == [expected]


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_the_word_indices_of_any_source_line_are_valid_and_sorted(
    tokenizer: Tokenizer, text: str
) -> None:
    [ids], [words] = tokenizer.encode_src([text]), tokenizer.src_words([text])
    assert len(words) == len(ids)
    assert words == sorted(words)
    count = len(text.split())
    assert all(min(0, count - 1) <= word < count for word in words)


def test_two_words_that_normalization_joins_keep_their_own_indices(
    tmp_path: Path, sample_pairs: list[SentencePair]
) -> None:
    """Join the words with U+001C, white space that this normalization deletes.

    A piece that covers both words belongs to the second word.
    """
    tokenizer = train(
        sample_pairs, tmp_path, src_normalization="nmt_nfkc", tgt_normalization="nmt_nfkc"
    )
    [ids], [words] = tokenizer.encode_src(["der\x1cHund"]), tokenizer.src_words(["der\x1cHund"])
    assert tokenizer.decode_src(ids) == "derHund"
    assert words == sorted(words)
    assert [
        tokenizer.decode_src([i for i, word in zip(ids, words, strict=True) if word == number])
        for number in (0, 1)
    ] == ["der", "Hund"]
    _, first, second = next(
        piece
        for piece in tokenizer.src_pieces
        if piece[0] == "\u2581" and len(piece) == 3 and piece[1:].isalpha()
    )
    assert tokenizer.src_words([f"{first}\x1c{second}"]) == [[1]]


def test_a_target_id_belongs_to_its_word_and_special_ids_to_none(
    tokenizer: Tokenizer, sample_pairs: list[SentencePair]
) -> None:
    for _, line in sample_pairs[:50]:
        by_word = tokenizer.encode_tgt(line.split())
        ids = [i for word in by_word for i in word]
        expected = [number for number, word in enumerate(by_word) for _ in word]
        assert tokenizer.tgt_words(ids) == expected
        assert tokenizer.tgt_words([BOS_ID, *ids, EOS_ID, PAD_ID]) == [-1, *expected, -1, -1]
    assert tokenizer.tgt_words([]) == []


@given(ids=st.lists(st.integers(0, 419)))
def test_the_word_indices_of_any_target_ids_are_valid_and_sorted(
    tokenizer: Tokenizer, ids: list[int]
) -> None:
    words, count = tokenizer.tgt_words(ids), len(tokenizer.decode_tgt(ids).split())
    assert len(words) == len(ids)
    of_text = [
        word for word, i in zip(words, ids, strict=True) if i not in (PAD_ID, BOS_ID, EOS_ID)
    ]
    assert of_text == sorted(of_text)
    assert all(min(0, count - 1) <= word < count for word in of_text)


# Tokenizer folders and existing models


@pytest.mark.parametrize("joint", [True, False])
def test_a_saved_tokenizer_is_the_same_one(
    tmp_path: Path, sample_pairs: list[SentencePair], joint: bool
) -> None:
    tokenizer = train(sample_pairs, tmp_path / "trained", joint=joint)
    tokenizer.save(tmp_path / "deep" / "saved")
    again = Tokenizer.load(tmp_path / "deep" / "saved")
    assert files(tmp_path / "deep" / "saved") == files(tmp_path / "trained")
    assert (again.hash, again.is_joint) == (tokenizer.hash, joint)


def test_the_hash_depends_on_the_bytes_of_the_models(
    tmp_path: Path, tokenizer: Tokenizer, sample_pairs: list[SentencePair]
) -> None:
    assert train(sample_pairs, tmp_path / "same", vocab_size=500).hash == tokenizer.hash
    assert train(sample_pairs[1:], tmp_path / "other", vocab_size=500).hash != tokenizer.hash


@pytest.mark.parametrize("content", [None, b"", b"not a model"])
def test_a_folder_without_a_good_model_is_refused_with_its_path(
    tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "joint.spm").write_bytes(content)
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        Tokenizer.load(tmp_path)


def train_other_model(path: Path, pairs: list[SentencePair], **options: Any) -> str:
    """Train a model with SentencePiece alone, and return its path.

    By default, the model has SentencePiece's special ids: unknown is 0, beginning is 1, end is 2,
    and there is no padding.
    """
    with path.open("wb") as handle:
        lines = iter([line for pair in pairs for line in pair])
        options = {"vocab_size": 200, "minloglevel": 2, **options}
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=handle, **options
        )
    return str(path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model_type": "bpe"},
        {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1},
        {"bos_piece": "<start>", "user_defined_symbols": ["{name}"]},
        {"pad_id": 3, "byte_fallback": True, "vocab_size": 450},
    ],
    ids=str,
)
def test_a_model_with_other_special_ids_gets_ours_and_tokenizes_as_before(
    tmp_path: Path, sample_pairs: list[SentencePair], options: dict[str, Any]
) -> None:
    path = train_other_model(tmp_path / "original.model", sample_pairs, **options)
    copy_models(TokenizerConfig(src_model=path, tgt_model=path), tmp_path / "ours")
    tokenizer = Tokenizer.load(tmp_path / "ours")
    original = sentencepiece.SentencePieceProcessor(model_file=path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.src_model))
    assert [getattr(processor, f"{role}_id")() for role in ("pad", "unk", "bos", "eos")] == [
        PAD_ID,
        UNK_ID,
        BOS_ID,
        EOS_ID,
    ]
    lines = [line for pair in sample_pairs[:200] for line in pair] + ["{name} \u65e5\u672c m\u00b2"]
    expected = [[original.id_to_piece(i) for i in ids] for ids in original.encode(lines)]
    assert [
        [tokenizer.src_pieces[i] for i in ids] for ids in tokenizer.encode_src(lines)
    ] == expected
    assert [tokenizer.decode_tgt(ids) for ids in tokenizer.encode_tgt(lines)] == [
        original.decode(ids) for ids in original.encode(lines)
    ]
    assert tokenizer.is_joint
    assert set(tokenizer.src_pieces) >= {
        original.id_to_piece(i) for i in range(original.get_piece_size())
    }


def test_a_model_with_our_ids_is_copied_and_one_without_special_pieces_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, sample_pairs: list[SentencePair]
) -> None:
    ours = str(tokenizer.src_model)
    copy_models(TokenizerConfig(src_model=ours, tgt_model=ours), tmp_path / "same")
    assert (tmp_path / "same" / "joint.spm").read_bytes() == tokenizer.src_model.read_bytes()
    odd = train_other_model(
        tmp_path / "odd.model", sample_pairs, bos_id=-1, user_defined_symbols=["<s>"]
    )
    with pytest.raises(
        ConfigError, match=r"tokenizer.src_model, tgt_model: .*odd.model: .*<s> is ordinary text"
    ):
        copy_models(TokenizerConfig(src_model=odd, tgt_model=odd), tmp_path / "refused")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(ConfigError, match=r"tokenizer.tgt_model: .*bad.model"):
        copy_models(
            TokenizerConfig(src_model=ours, tgt_model=str(tmp_path / "bad.model")),
            tmp_path / "refused",
        )


# Normalization

EXACT = [
    "\uff08\u661f\u671f\u4e00\uff09\u53bb\u5417\uff1f", "10\u2076 m\u00b2", "1\u00bd",
    "\u0e19\u0e49\u0e33", "\u0645\u06cc\u200c\u062e", "a\u00a0b\u202fc", "e\u0301", "a\tb",
    "x\ry", "\ufb01n", "\u3000\u65e5", "a\x01", "\ufeffa", "\u212b",
]  # fmt: skip


@pytest.mark.parametrize("joint", [True, False])
def test_targets_are_decoded_unchanged_and_sources_are_composed(
    tmp_path: Path, sample_pairs: list[SentencePair], joint: bool
) -> None:
    tokenizer = train(sample_pairs, tmp_path, joint=joint)
    assert [tokenizer.decode_tgt(ids) for ids in tokenizer.encode_tgt(EXACT)] == EXACT
    for text in EXACT:
        composed = unicodedata.normalize("NFC", " ".join(text.split()))
        assert tokenizer.decode_src(tokenizer.encode_src([text])[0]) == composed
    assert tokenizer.is_joint is joint


@given(
    text=st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\u2581\0\n"), max_size=30
    )
)
def test_any_target_is_decoded_unchanged_except_for_runs_of_spaces(
    tokenizer: Tokenizer, text: str
) -> None:
    def spaced(line: str) -> str:
        return " ".join(word for word in line.split(" ") if word)

    back = tokenizer.decode_tgt(tokenizer.encode_tgt([text])[0])
    assert spaced(back) == (spaced(text) if text.strip() else "")


@pytest.mark.parametrize(
    "spelling", ["\u1ed9", "o\u0323\u0302", "o\u0302\u0323", "\u1ecd\u0302", "\u00f4\u0323"]
)
def test_all_spellings_of_a_composed_character_have_the_same_ids(
    tokenizer: Tokenizer, spelling: str
) -> None:
    assert tokenizer.encode_src([f"m{spelling}t"]) == tokenizer.encode_src(["m\u1ed9t"])


@given(
    text=st.text(
        st.sampled_from("aeo\u0301\u0302\u0323\u030a \uac00\u11a8\u1100\u1161\u212b\uf900"),
        max_size=8,
    )
)
def test_source_text_is_normalized_as_in_unicodedata(tokenizer: Tokenizer, text: str) -> None:
    composed = unicodedata.normalize("NFC", text)
    # Our rules do not reorder marks that have no composed form.
    hypothesis.assume(not any(map(unicodedata.combining, composed)))
    assert tokenizer.decode_src(tokenizer.encode_src([text])[0]) == " ".join(
        word for word in composed.split(" ") if word
    )


@pytest.mark.parametrize("rule", ["nfkc", "nmt_nfkc"])
def test_other_normalizations_are_those_of_sentencepiece(
    tmp_path: Path, sample_pairs: list[SentencePair], rule: str
) -> None:
    reference = sentencepiece.SentencePieceNormalizer(rule_name=rule, escape_whitespaces=False)
    both = train(sample_pairs, tmp_path / "both", src_normalization=rule, tgt_normalization=rule)
    mixed = train(sample_pairs, tmp_path / "mixed", src_normalization=rule)
    assert sorted(files(tmp_path / "both")) == ["joint.spm"]
    for text in EXACT:
        expected = " ".join(reference.normalize(text).split(" ")).strip(" ")
        assert {
            tokenizer.decode_src(tokenizer.encode_src([text])[0]) for tokenizer in (both, mixed)
        } == {expected}
    assert mixed.decode_tgt(mixed.encode_tgt(["10\u2076"])[0]) == "10\u2076"


def test_user_defined_symbols_are_one_piece_each(
    tmp_path: Path, sample_pairs: list[SentencePair]
) -> None:
    tokenizer = train(sample_pairs, tmp_path, user_defined_symbols=["{name}", "<tag>"])
    ids = tokenizer.encode_src(["Hallo {name}<tag>!"])[0]
    assert {"{name}", "<tag>"} <= {tokenizer.src_pieces[i] for i in ids}
    assert tokenizer.decode_src(ids) == "Hallo {name}<tag>!"
