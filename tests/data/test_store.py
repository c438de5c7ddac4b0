"""Test `mt.data.store`, `mt.data.checked_array` and `mt.data.checks`: ids are read back as
written, and every pair is either kept or counted as dropped.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mt.config import FilterConfig
from mt.data import store as cache_module
from mt.data.checks import FilterStats, text_filter, token_filter
from mt.data.sources import SentencePair
from mt.data.store import TokenCache, build_cache
from mt.data.tokenizer import Tokenizer
from mt.errors import DataError
from tests.data.conftest import pair_ids

MakeTokenizer = Callable[[int], Tokenizer]
KEEP_ALL = FilterConfig(max_len=100_000)


def ids(*numbers: int) -> str:
    return " ".join(map(str, numbers))


# The cache


@pytest.mark.parametrize("lines_per_call", [1, 7, 100, 4096])
def test_a_cache_holds_the_ids_of_the_tokenizer(
    tmp_path: Path,
    tokenizer: Tokenizer,
    sample_pairs: list[SentencePair],
    monkeypatch: pytest.MonkeyPatch,
    lines_per_call: int,
) -> None:
    monkeypatch.setattr(cache_module, "LINES_PER_CALL", lines_per_call)
    pairs = sample_pairs[:100]
    built, stats = build_cache(
        iter(pairs), tokenizer, KEEP_ALL, tmp_path / "cache", {"corpora": ["Größe"]}
    )
    assert stats == {"kept": 100}
    for cache in (built, TokenCache(tmp_path / "cache")):
        expected = [
            (tokenizer.encode_src([pair.src])[0], tokenizer.encode_tgt([pair.tgt])[0])
            for pair in pairs
        ]
        assert [pair_ids(cache, i) for i in range(len(cache))] == expected
        picked = np.array([99, 0, 5, 5])
        for side, rows in enumerate(cache.rows(picked)):
            assert rows.ids.tolist() == [id_ for i in picked for id_ in expected[i][side]]
            assert rows.lens.tolist() == [len(expected[i][side]) for i in picked]
        lengths = [[len(expected[i][side]) for i in picked] for side in (0, 1)]
        assert [side.tolist() for side in cache.lengths(picked)] == lengths
        assert list(cache.num_tokens.values()) == [
            sum(len(pair[side]) for pair in expected) for side in (0, 1)
        ]
        assert cache.manifest["corpora"] == ["Größe"]


@pytest.mark.parametrize(
    ("vocab_size", "dtype"),
    [(1000, "uint16"), (65_536, "uint16"), (65_537, "uint32"), (1_000_000, "uint32")],
)
def test_ids_have_16_bits_unless_the_vocabulary_is_larger(
    tmp_path: Path, id_tokenizer: MakeTokenizer, vocab_size: int, dtype: str
) -> None:
    last = vocab_size - 1
    cache, _ = build_cache(
        [SentencePair(ids(4, last), ids(last))],
        id_tokenizer(vocab_size),
        KEEP_ALL,
        tmp_path / "cache",
        {},
    )
    assert [side.ids.dtype.name for side in cache.rows(np.array([0]))] == [dtype, dtype]
    assert pair_ids(cache, 0) == ([4, last], [last])
    assert (tmp_path / "cache" / "src.tokens.bin").stat().st_size == 2 * np.dtype(dtype).itemsize


@pytest.mark.parametrize(
    "file",
    ["src.tokens.bin", "src.offsets.bin", "tgt.tokens.bin", "tgt.offsets.bin", "manifest.json"],
)
@pytest.mark.parametrize("damage", ["cut", "longer", "empty", "missing"])
def test_a_damaged_cache_is_refused_with_its_folder(
    tmp_path: Path, id_tokenizer: MakeTokenizer, file: str, damage: str
) -> None:
    folder = tmp_path / "cache"
    build_cache([SentencePair("4 5", "6 7")], id_tokenizer(1000), KEEP_ALL, folder, {})
    data = (folder / file).read_bytes()
    if damage == "missing":
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(
            {"cut": data[:-3], "longer": data + b"xx", "empty": b""}[damage]
        )
    with pytest.raises(DataError, match=rf"^{folder}: damaged token cache .*delete this folder"):
        TokenCache(folder)


@pytest.mark.parametrize(
    "change", [{"dtype": "nonsense"}, {"pairs": None}, {"tokens": [1, 2]}, {"pairs": 5}]
)
def test_a_wrong_manifest_is_refused(
    tmp_path: Path, id_tokenizer: MakeTokenizer, change: dict[str, object]
) -> None:
    folder = tmp_path / "cache"
    build_cache([SentencePair("4 5", "6 7")], id_tokenizer(1000), KEEP_ALL, folder, {})
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").write_text(json.dumps({**manifest, **change}), encoding="utf-8")
    with pytest.raises(DataError, match="damaged token cache"):
        TokenCache(folder)


@pytest.mark.parametrize("pairs", [[], [SentencePair("4 " * 20, "5")], [SentencePair(" ", "5")]])
def test_a_corpus_without_kept_pairs_is_refused_and_leaves_no_folder(
    tmp_path: Path, id_tokenizer: MakeTokenizer, pairs: list[SentencePair]
) -> None:
    with pytest.raises(DataError, match="no training pairs are left"):
        build_cache(pairs, id_tokenizer(1000), FilterConfig(max_len=10), tmp_path / "cache", {})
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_text_leaves_no_folder(tmp_path: Path, id_tokenizer: MakeTokenizer) -> None:
    def pairs():  # type: ignore[no-untyped-def]
        yield SentencePair("4", "5")
        raise DataError("train.de:2: not UTF-8")

    with pytest.raises(DataError, match="not UTF-8"):
        build_cache(pairs(), id_tokenizer(1000), KEEP_ALL, tmp_path / "cache", {})
    assert list(tmp_path.iterdir()) == []


# Filters


@pytest.mark.parametrize(
    ("src_bytes", "tgt_bytes", "verdict"),
    [(10, 10, None), (11, 1, "max_bytes"), (1, 11, "max_bytes"), (0, 0, None)],
)
def test_the_byte_limit_counts_bytes_of_either_side(
    src_bytes: int, tgt_bytes: int, verdict: str | None
) -> None:
    assert (
        text_filter(SentencePair("x" * src_bytes, "y" * tgt_bytes), FilterConfig(max_bytes=10))
        == verdict
    )
    umlauts = SentencePair("ä" * (src_bytes // 2) + "x" * (src_bytes % 2), "y" * tgt_bytes)
    assert text_filter(umlauts, FilterConfig(max_bytes=10)) == verdict


@pytest.mark.parametrize(
    ("src_len", "tgt_len", "verdict"),
    [
        # The maximum of 10 includes the end-of-sentence token.
        (9, 9, None), (10, 9, "max_len"), (9, 10, "max_len"), (50, 1, "max_len"),
        (6, 3, None), (7, 3, "max_ratio"), (2, 1, None), (3, 1, "max_ratio"),
        (3, 6, None), (3, 7, "max_ratio"),
        (0, 3, "no_subwords"), (3, 0, "no_subwords"), (0, 0, "no_subwords"),
    ],
)  # fmt: skip
def test_lengths_and_ratios_on_both_sides_of_their_limits(
    src_len: int, tgt_len: int, verdict: str | None
) -> None:
    config = FilterConfig(max_len=10, max_ratio=2.0)
    assert token_filter([5] * src_len, [6] * tgt_len, config) == verdict


def test_without_max_ratio_any_ratio_is_kept() -> None:
    assert token_filter([5], [6] * 200, FilterConfig()) is None


def test_kept_and_dropped_add_up_to_the_pairs(
    tmp_path: Path, id_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "LINES_PER_CALL", 5)
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 14, (300, 2)).tolist()
    pairs = [SentencePair("7 " * src, "8 " * tgt) for src, tgt in lengths]
    filters = FilterConfig(max_bytes=24, max_len=11, max_ratio=3.0)
    cache, stats = build_cache(iter(pairs), id_tokenizer(1000), filters, tmp_path / "cache", {})

    def verdict(src: int, tgt: int) -> str:
        if 2 * max(src, tgt) > 24:
            return "max_bytes"
        if not src or not tgt:
            return "no_subwords"
        if max(src, tgt) > 10:
            return "max_len"
        return "max_ratio" if max(src, tgt) / min(src, tgt) > 3 else "kept"

    assert stats == Counter(verdict(*pair) for pair in lengths)
    assert len(stats) == 5
    assert stats.total() == 300
    assert cache.manifest["filters"] == stats
    assert [[len(side) for side in pair_ids(cache, i)] for i in range(len(cache))] == [
        pair for pair in lengths if verdict(*pair) == "kept"
    ]


def test_filter_stats_are_formatted_as_text() -> None:
    assert str(FilterStats({"kept": 1234})) == "1,234 pairs kept; none dropped"
    assert (
        str(FilterStats({"kept": 5, "max_len": 1000, "max_bytes": 2}))
        == "5 pairs kept; dropped by max_bytes 2, max_len 1,000"
    )


# Text statistics and damaged files


@pytest.mark.parametrize(
    "file",
    ["src.tokens.bin", "tgt.tokens.bin", "src.offsets.bin", "tgt.offsets.bin", "src.tokens.crc"],
)
def test_a_changed_number_is_noticed_when_its_block_is_first_read(
    tmp_path: Path, id_tokenizer: MakeTokenizer, file: str
) -> None:
    pairs = [SentencePair(ids(*range(4, 40)), ids(*range(4, 30))) for _ in range(3000)]
    build_cache(pairs, id_tokenizer(1000), KEEP_ALL, tmp_path / "cache", {})
    path = tmp_path / "cache" / file
    content = bytearray(path.read_bytes())
    content[-1] ^= 1  # in the last block
    path.write_bytes(content)
    cache = TokenCache(tmp_path / "cache")
    if "tokens" in file:
        assert len(pair_ids(cache, 0)[0]) == 36
    with pytest.raises(
        DataError, match=r"\.bin is damaged between bytes .* delete .*cache and start again"
    ):
        pair_ids(cache, len(cache) - 1)
    with pytest.raises(DataError, match="damaged"):
        TokenCache(tmp_path / "cache").rows(np.array([0, len(cache) - 1]))
    with pytest.raises(DataError, match="damaged"):
        TokenCache(tmp_path / "cache").lengths(
            np.array([len(cache) - 1])
        ) if "offsets" in file else pair_ids(cache, len(cache) - 1)


def test_the_lengths_of_training_lines_are_recorded(
    tmp_path: Path, id_tokenizer: MakeTokenizer
) -> None:
    pairs = [SentencePair(ids(*[7] * (n + 1)), ids(*[7] * (2 * n + 1))) for n in range(100)]
    cache, _ = build_cache(pairs, id_tokenizer(1000), KEEP_ALL, tmp_path / "cache", {})
    assert cache.length_quantiles.src == {"0.5": 50, "0.9": 90, "0.99": 99, "0.9999": 100, "1": 100}
    assert cache.length_quantiles.tgt["1"] == 199
    assert cache.length_quantiles.sentences["1"] == 1


def test_target_lines_that_the_tokenizer_changes_are_counted_and_recorded(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    pairs = [SentencePair("a", text) for text in ("a  b", "same", "x\u2581y", "z \u2581 z")]
    cache, _ = build_cache(pairs, tokenizer, KEEP_ALL, tmp_path / "cache", {})
    assert (cache.lossy.num_lines, cache.lossy.count) == (4, 2)
    assert [list(example) for example in cache.lossy.examples] == [
        ["x\u2581y", "x y"],
        ["z \u2581 z", "z   z"],
    ]
