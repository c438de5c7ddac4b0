"""Put the Multi30k corpus (Elliott et al. 2016) into data/multi30k/.

Usage: python scripts/corpus/get_multi30k.py [--from FOLDER] [--out data/multi30k]

The corpus is downloaded from the Hugging Face hub (`bentrevett/multi30k`, whose `test` split is
test_2016_flickr) or read from FOLDER, which must contain {train,val,test_2016_flickr}.{de,en} as
plain text or as .gz files. The script writes {train,val,test_2016_flickr}.{de,en}.gz. The corpus is
for research use only.
"""

import argparse
import gzip
from collections.abc import Iterable
from pathlib import Path

from mt.data.sources import read_text

# Maps each file name to (split on the hub, expected number of lines).
SPLITS = {
    "train": ("train", 29_000),
    "val": ("validation", 1_014),
    "test_2016_flickr": ("test", 1_000),
}
LANGUAGES = ("de", "en")


def from_folder(folder: Path, name: str, language: str) -> list[str]:
    """Read one file of `folder`, plain or gzipped."""
    path = folder / f"{name}.{language}"
    return read_text(path if path.exists() else f"{path}.gz")


def from_hub(name: str, language: str) -> list[str]:
    """Download one side of a split from the hub."""
    import datasets

    rows: Iterable[dict[str, str]] = datasets.load_dataset(
        "bentrevett/multi30k", split=SPLITS[name][0]
    )
    return [row[language].replace("\n", " ").strip() for row in rows]


def main() -> None:
    """Write both sides of every split, after checking how many lines each side has."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--from", dest="folder", type=Path, help="a folder with the corpus (default: download it)"
    )
    parser.add_argument("--out", type=Path, default=Path("data/multi30k"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, (_, expected) in SPLITS.items():
        for language in LANGUAGES:
            lines = (
                from_folder(args.folder, name, language)
                if args.folder
                else from_hub(name, language)
            )
            if len(lines) != expected:
                raise SystemExit(f"{name}.{language}: {len(lines)} lines, expected {expected}")
            # Without a time stamp, the same text gives the same bytes, and so the same token cache.
            (args.out / f"{name}.{language}.gz").write_bytes(
                gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0)
            )
    print(
        f"{args.out}: "
        + ", ".join(f"{name} {expected:,}" for name, (_, expected) in SPLITS.items())
    )


if __name__ == "__main__":
    main()
