"""Test `mt.data.prepare`: unchanged data is reused, and changed data is prepared again."""

import contextlib
import gzip
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from mt.config import Config, CorpusConfig, DataConfig, TokenizerConfig
from mt.data.prepare import Prepared, fingerprint_before_0_2, prepare, text_fingerprint
from mt.data.sources import SentencePair
from mt.errors import ConfigError, DataError
from mt.files import atomic_write, locked
from mt.runtime.world import World
from tests.data.conftest import pair_ids

WriteCorpus = Callable[..., CorpusConfig]
MakeConfig = Callable[..., Config]


@pytest.fixture
def text(sample_pairs: list[SentencePair]) -> tuple[bytes, bytes]:
    """Return the first 200 pairs of the sample corpus as the contents of two files."""
    src, tgt = (
        "".join(pair[side] + "\n" for pair in sample_pairs[:200]).encode() for side in (0, 1)
    )
    return src, tgt


@pytest.fixture
def make(tmp_path: Path) -> MakeConfig:
    """Return a function that makes configurations. All of them share one cache folder."""

    def make(
        *corpora: CorpusConfig,
        data: dict[str, Any] | None = None,
        tokenizer: dict[str, Any] | None = None,
    ) -> Config:
        return Config(
            cache_dir=str(tmp_path / "cache"),
            data=DataConfig(train=list(corpora), **(data or {})),
            tokenizer=TokenizerConfig(**{"vocab_size": 400, "num_threads": 1, **(tokenizer or {})}),
        )

    return make


def cached_files(tmp_path: Path) -> dict[str, int]:
    """Map every file in the cache to its modification time."""
    return {
        str(path.relative_to(tmp_path)): path.stat().st_mtime_ns
        for path in (tmp_path / "cache").rglob("*.*")
    }


def texts(prepared: Prepared) -> list[str]:
    """Return the target text of every pair in the token cache."""
    return [
        prepared.tokenizer.decode_tgt(pair_ids(prepared.train, i)[1])
        for i in range(len(prepared.train))
    ]


def test_the_cache_is_what_a_loop_over_the_lines_gives(
    make: MakeConfig, write_corpus: WriteCorpus, text: tuple[bytes, bytes]
) -> None:
    corpora = [write_corpus(*text, "one"), write_corpus(b"eins\nzwei\n", b"one\ntwo\n", "two")]
    prepared = prepare(make(*corpora))
    expected: list[tuple[list[int], list[int]]] = []
    for corpus in corpora:
        sides = []
        for path, model in (
            (corpus.src, prepared.tokenizer.src_model),
            (corpus.tgt, prepared.tokenizer.tgt_model),
        ):
            processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
            lines = Path(str(path)).read_text(encoding="utf-8").split("\n")[:-1]
            sides.append([processor.encode(line) for line in lines])
        expected += zip(*sides, strict=True)
    assert len(expected) == 202
    pairs = [pair_ids(prepared.train, i) for i in range(len(prepared.train))]
    assert pairs == expected


class SecondRank(World):
    """Acts as rank 1: receives the JSON that rank 0 sent, and never calls `work`."""

    def __init__(self, message: str) -> None:
        super().__init__(rank=1, size=2)
        self.message = message

    def broadcast_from_rank0(self, work: Callable[[], Any]) -> Any:
        return json.loads(self.message)


class FirstRank(World):
    """Acts as rank 0: keeps what it sends to the other ranks, as JSON."""

    def broadcast_from_rank0(self, work: Callable[[], Any]) -> Any:
        answer = work()
        self.message = json.dumps(answer)
        return answer


def test_the_other_ranks_open_what_rank_0_made(
    tmp_path: Path, make: MakeConfig, write_corpus: WriteCorpus, text: tuple[bytes, bytes]
) -> None:
    config, rank0 = make(write_corpus(*text)), FirstRank()
    first = prepare(config, rank0)
    before = cached_files(tmp_path)
    second = prepare(config, SecondRank(rank0.message))
    assert cached_files(tmp_path) == before
    assert (second.data_fingerprint, second.tokenizer.hash, texts(second)) == (
        first.data_fingerprint,
        first.tokenizer.hash,
        texts(first),
    )
    shutil.rmtree(first.train.folder)
    with pytest.raises(DataError, match="must be a folder that all machines can read"):
        prepare(config, SecondRank(rank0.message))


def test_the_cache_holds_the_corpora_one_after_the_other(
    make: MakeConfig,
    write_corpus: WriteCorpus,
    sample_pairs: list[SentencePair],
    text: tuple[bytes, bytes],
) -> None:
    prepared = prepare(
        make(write_corpus(*text, "one"), write_corpus(b"eins\nzwei\n", b"one\ntwo\n", "two"))
    )
    assert texts(prepared) == [*(pair.tgt for pair in sample_pairs[:200]), "one", "two"]
    assert prepared.tokenizer.src_vocab_size == 400


def test_an_unchanged_corpus_is_tokenized_once(
    tmp_path: Path, make: MakeConfig, write_corpus: WriteCorpus, text: tuple[bytes, bytes]
) -> None:
    config = make(write_corpus(*text))
    first = prepare(config)
    before = cached_files(tmp_path)
    cached = [
        f"{side}.{what}.{kind}"
        for side in ("src", "tgt")
        for what in ("offsets", "tokens")
        for kind in ("bin", "crc")
    ]
    assert sorted(name.rpartition("/")[2] for name in before) == sorted(
        ["src.spm", "tgt.spm", "manifest.json", *cached]
    )
    second = prepare(config)
    assert cached_files(tmp_path) == before
    assert (second.data_fingerprint, second.tokenizer.hash, texts(second)) == (
        first.data_fingerprint,
        first.tokenizer.hash,
        texts(first),
    )


def test_a_changed_line_makes_a_new_tokenizer_and_token_cache(
    tmp_path: Path, make: MakeConfig, write_corpus: WriteCorpus, text: tuple[bytes, bytes]
) -> None:
    first = prepare(make(write_corpus(*text)))
    before = cached_files(tmp_path)
    changed = text[1].replace(b"\n", b" indeed\n", 1)
    second = prepare(make(write_corpus(text[0], changed)))
    assert texts(second) != texts(first)
    assert texts(second)[1:] == texts(first)[1:]
    assert second.data_fingerprint != first.data_fingerprint
    after = cached_files(tmp_path)
    assert len(after) == 2 * len(before)
    assert before.items() <= after.items()


def test_moving_the_text_changes_nothing(
    tmp_path: Path, make: MakeConfig, write_corpus: WriteCorpus, text: tuple[bytes, bytes]
) -> None:
    first = prepare(make(write_corpus(*text)))
    before = cached_files(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    moved = [
        shutil.move(tmp_path / f"train.{side}", tmp_path / "elsewhere" / f"text.{side}")
        for side in ("src", "tgt")
    ]
    second = prepare(make(CorpusConfig(src=str(moved[0]), tgt=str(moved[1]))))
    assert cached_files(tmp_path) == before
    assert second.data_fingerprint == first.data_fingerprint


def test_other_filters_share_the_tokenizer(
    tmp_path: Path, make: MakeConfig, write_corpus: WriteCorpus, text: tuple[bytes, bytes]
) -> None:
    corpus = write_corpus(*text)
    all_pairs = prepare(make(corpus))
    short = prepare(make(corpus, data={"filters": {"max_len": 20}}))
    assert 0 < len(short.train) < len(all_pairs.train)
    cache = short.train
    assert max(len(side) for i in range(len(cache)) for side in pair_ids(cache, i)) <= 19
    assert short.tokenizer.hash == all_pairs.tokenizer.hash
    assert short.data_fingerprint != all_pairs.data_fingerprint
    names = [name for name in cached_files(tmp_path) if name.endswith(("spm", "json"))]
    assert sorted(name.rpartition("/")[2] for name in names) == [
        "manifest.json",
        "manifest.json",
        "src.spm",
        "tgt.spm",
    ]


@pytest.mark.parametrize(
    "options", [{"vocab_size": 410}, {"model_type": "bpe"}, {"max_lines": 50, "vocab_size": 350}]
)
def test_another_tokenizer_is_another_cache(
    make: MakeConfig, write_corpus: WriteCorpus, text: tuple[bytes, bytes], options: Any
) -> None:
    corpus = write_corpus(*text)
    first, second = prepare(make(corpus)), prepare(make(corpus, tokenizer=options))
    assert first.tokenizer.hash != second.tokenizer.hash
    assert first.data_fingerprint != second.data_fingerprint
    assert texts(first) == texts(second)


def test_a_trained_tokenizer_is_used_as_it_is(
    tmp_path: Path, make: MakeConfig, write_corpus: WriteCorpus, text: tuple[bytes, bytes]
) -> None:
    corpus = write_corpus(*text)
    first = prepare(make(corpus))
    models = {
        "src_model": str(first.tokenizer.src_model),
        "tgt_model": str(first.tokenizer.tgt_model),
    }
    second = prepare(make(corpus, tokenizer=models))
    assert (second.tokenizer.hash, second.data_fingerprint) == (
        first.tokenizer.hash,
        first.data_fingerprint,
    )


def test_a_tokenizer_does_not_depend_on_the_one_trained_before(
    tmp_path: Path, make: MakeConfig, write_corpus: WriteCorpus, text: tuple[bytes, bytes]
) -> None:
    # 50 lines are not valid UTF-8. The tokenizer is trained on them only under `replace`.
    broken = (text[0] + b"qq\xffqq xyxyx\n" * 50, text[1] + b"vwvwv vvwwv\n" * 50)
    configs = {
        policy: make(write_corpus(*broken), data={"on_invalid_utf8": policy})
        for policy in ("replace", "skip")
    }
    hashes = {policy: prepare(config).tokenizer.hash for policy, config in configs.items()}
    for policy, config in configs.items():
        shutil.rmtree(tmp_path / "cache")
        assert prepare(config).tokenizer.hash == hashes[policy]
    assert len(set(hashes.values())) == 2


def test_gz_and_plain_text_give_the_same_tokens(
    tmp_path: Path, make: MakeConfig, write_corpus: WriteCorpus, text: tuple[bytes, bytes]
) -> None:
    plain = prepare(make(write_corpus(*text)))
    for side, data in zip(("src", "tgt"), text, strict=True):
        (tmp_path / f"text.{side}.gz").write_bytes(gzip.compress(data))
    packed = prepare(
        make(CorpusConfig(src=str(tmp_path / "text.src.gz"), tgt=str(tmp_path / "text.tgt.gz")))
    )
    assert packed.tokenizer.hash == plain.tokenizer.hash
    assert texts(packed) == texts(plain)


def test_the_fingerprint_depends_on_the_sides_and_the_order_of_corpora(
    make: MakeConfig, write_corpus: WriteCorpus
) -> None:
    one, two = write_corpus(b"a\n", b"b\n", "one"), write_corpus(b"c\n", b"d\n", "two")
    swapped = CorpusConfig(src=one.tgt, tgt=one.src)
    lists = [(one,), (two,), (swapped,), (one, two), (two, one), (one, one)]
    assert len({text_fingerprint(make(*corpora)) for corpora in lists}) == len(lists)
    assert text_fingerprint(make(one)) == text_fingerprint(
        make(one.model_copy(update={"name": "other"}))
    )


def test_the_fingerprint_of_a_dataset_depends_on_its_text_only(
    tmp_path: Path, make: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    fingerprints = []
    for folder, target in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_text(f'{{"de": "x", "en": "{target}"}}\n')
        fingerprints.append(
            text_fingerprint(
                make(CorpusConfig(dataset=str(tmp_path / folder), src_column="de", tgt_column="en"))
            )
        )
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_the_log_shows_how_many_pairs_were_skipped_and_dropped(
    make: MakeConfig,
    write_corpus: WriteCorpus,
    text: tuple[bytes, bytes],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Calling `setup_logging` in another test may have turned propagation off.
    monkeypatch.setattr(logging.getLogger("mt"), "propagate", True)
    corpus = write_corpus(text[0] + b"\nlost\n", text[1] + b"\n\n")
    with caplog.at_level(logging.INFO, logger="mt"):
        prepared = prepare(
            make(corpus, data={"on_one_sided_empty": "skip", "filters": {"max_len": 20}})
        )
    shown = (
        f"{corpus.label}: 202 pairs (1 skipped: empty on both sides, 1 skipped: empty on one side)"
    )
    assert shown in caplog.messages
    assert (
        f"filters: {len(prepared.train)} pairs kept; dropped by max_len {200 - len(prepared.train)}"
        in caplog.messages
    )


# Mistakes


def test_no_corpus_is_refused(make: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="no training corpus"):
        prepare(make())


def test_a_missing_file_is_refused_with_its_name(tmp_path: Path, make: MakeConfig) -> None:
    with pytest.raises(DataError, match=f"{tmp_path}/none: No such file"):
        prepare(make(CorpusConfig(src=f"{tmp_path}/none", tgt=f"{tmp_path}/none")))


@pytest.mark.parametrize(
    ("src", "tgt", "message"),
    [
        (b"", b"", "no training pairs"),
        (b"\n\n", b"\n\n", "no training pairs"),
        (b"a\nb\n", b"a\n", "2 lines"),
        (b"\xff\n", b"a\n", "UTF-8"),
    ],
)
def test_text_that_cannot_be_used_leaves_nothing_behind(
    tmp_path: Path,
    make: MakeConfig,
    write_corpus: WriteCorpus,
    src: bytes,
    tgt: bytes,
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        prepare(make(write_corpus(src, tgt)))
    assert cached_files(tmp_path) == {}


def test_a_failed_tokenizer_leaves_nothing_behind(
    tmp_path: Path, make: MakeConfig, write_corpus: WriteCorpus
) -> None:
    with pytest.raises(DataError, match="at most"):
        prepare(make(write_corpus(b"a b\n", b"c d\n"), tokenizer={"vocab_size": 8000}))
    assert cached_files(tmp_path) == {}
    assert list((tmp_path / "cache").rglob(".*")) == []


def test_a_damaged_cache_is_refused_and_made_again_once_deleted(
    tmp_path: Path, make: MakeConfig, write_corpus: WriteCorpus, text: tuple[bytes, bytes]
) -> None:
    config = make(write_corpus(*text))
    expected = texts(prepare(config))
    tokens = next((tmp_path / "cache" / "tokens").rglob("src.tokens.bin"))
    atomic_write(tokens, tokens.read_bytes()[:-2])
    with pytest.raises(DataError, match=f"{tokens.parent}: damaged"):
        prepare(config)
    shutil.rmtree(tokens.parent)
    assert texts(prepare(config)) == expected


def test_too_many_target_lines_that_the_tokenizer_changes_are_refused_with_examples(
    make: MakeConfig,
    write_corpus: WriteCorpus,
    text: tuple[bytes, bytes],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed = text[1].replace(b".\n", "\u00b2.\n".encode())
    corpus = write_corpus(text[0], changed)
    plain = {"tgt_normalization": "nmt_nfkc", "src_normalization": "nmt_nfkc"}
    with pytest.raises(
        DataError,
        match=r"the tokenizer changes .* target lines \(\d+\.\d%\) .*\n  .*\u00b2\.\n  .*2\.\n",
    ) as caught:
        prepare(make(corpus, tokenizer=plain))
    assert "tokenizer.max_lossy_share (0.1)" in str(caught.value)
    monkeypatch.setattr(logging.getLogger("mt"), "propagate", True)
    with caplog.at_level(logging.WARNING, logger="mt"):
        prepare(make(corpus, tokenizer={**plain, "max_lossy_share": 1.0}))
        assert "the tokenizer changes" in caplog.text
        caplog.clear()
        prepare(make(corpus))
    assert "the tokenizer changes" not in caplog.text


def test_two_models_with_different_pieces_cannot_share_all_embeddings(
    tmp_path: Path, make: MakeConfig, write_corpus: WriteCorpus, text: tuple[bytes, bytes]
) -> None:
    corpus = write_corpus(*text)
    models = [
        prepare(make(corpus, tokenizer={"vocab_size": size})).tokenizer.src_model
        for size in (390, 400)
    ]
    with pytest.raises(
        ConfigError,
        match=r"tie_embeddings: `all` needs a joint vocabulary, but tokenizer.src_model",
    ):
        prepare(make(corpus, tokenizer={"src_model": str(models[0]), "tgt_model": str(models[1])}))


def test_a_complete_cache_needs_no_lock_and_waiting_for_a_lock_is_logged(
    tmp_path: Path,
    make: MakeConfig,
    write_corpus: WriteCorpus,
    text: tuple[bytes, bytes],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = make(write_corpus(*text))
    first = prepare(config)
    locks = list((tmp_path / "cache" / "locks").iterdir())
    assert len(locks) == 2
    with contextlib.ExitStack() as held:
        for lock in locks:
            held.enter_context(locked(lock))
        assert prepare(config).data_fingerprint == first.data_fingerprint
    shutil.rmtree(tmp_path / "cache" / "tokens")
    holder = held_by_another_process(
        next(lock for lock in locks if lock.name == first.train.folder.name)
    )
    monkeypatch.setattr(logging.getLogger("mt"), "propagate", True)
    with caplog.at_level(logging.INFO, logger="mt"):
        prepare(config)
    assert holder.wait() == 0
    assert "waiting for another process to finish the tokenized corpus" in caplog.text


def held_by_another_process(lock: Path) -> "subprocess.Popen[bytes]":
    """Start a process that holds a lock for a second, and wait until it has the lock."""
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom mt.files import locked\n"
        "with locked(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(1)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


def test_the_tokenizer_of_a_run_is_used_again(
    tmp_path: Path, make: MakeConfig, write_corpus: WriteCorpus, text: tuple[bytes, bytes]
) -> None:
    config = make(write_corpus(*text))
    first = prepare(config)
    expected = (first.tokenizer.hash, first.data_fingerprint)
    first.tokenizer.save(tmp_path / "kept")
    shutil.rmtree(tmp_path / "cache")
    again = prepare(config, tokenizer=tmp_path / "kept")
    shutil.rmtree(tmp_path / "kept")
    again.tokenizer.save(tmp_path / "saved")
    assert (again.tokenizer.hash, again.data_fingerprint) == expected


def test_the_fingerprint_ignores_compression_and_line_ends_but_that_of_version_0_1_does_not(
    tmp_path: Path, make: MakeConfig, write_corpus: WriteCorpus, text: tuple[bytes, bytes]
) -> None:
    plain = prepare(make(write_corpus(*text)))
    packed = {
        level: make(write_corpus(*(gzip.compress(side, level) for side in text), f"packed-{level}"))
        for level in (1, 9)
    }
    assert {prepare(config).data_fingerprint for config in packed.values()} == {
        plain.data_fingerprint
    }
    assert len({fingerprint_before_0_2(config, plain.tokenizer) for config in packed.values()}) == 2
    ends = make(
        write_corpus(
            b"\xef\xbb\xbf" + text[0].replace(b"\n", b"\r\n"), text[1].removesuffix(b"\n"), "ends"
        )
    )
    assert prepare(ends).data_fingerprint == plain.data_fingerprint


def test_a_damaged_tokenizer_in_the_cache_is_refused(
    make: MakeConfig, write_corpus: WriteCorpus, text: tuple[bytes, bytes]
) -> None:
    config = make(write_corpus(*text))
    model = prepare(config).tokenizer.src_model
    content = bytearray(model.read_bytes())
    content[content.index("\u2581".encode()) + 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(DataError, match=r"the tokenizer is damaged; delete this folder"):
        prepare(config)
