#!/usr/bin/env python
"""Check that the exports of a model give the same translations as the model itself.

Usage: python scripts/check/exports.py MODEL SOURCE [--lines 1000] [--beams 1,5]

The model is exported to every format that can express it. All lines that differ are printed. The
exit code is 1 if fewer than 995 of 1,000 lines are identical, or if a differing line is not a tie.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from mt.convert.export import TITLES, verify_export, write_export
from mt.data.sources import read_text
from mt.decode.loading import load_model
from mt.errors import ExportError


def main() -> int:
    """Export to each format, and compare the translations. Returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("source")
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--beams", default="1,5")
    options = parser.parse_args()
    loaded = load_model(options.model, torch.device("cpu"))
    lines = read_text(options.source)[: options.lines]
    all_hold = True
    for to, title in TITLES.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                write_export(to, loaded, Path(folder) / to)
            except ExportError as error:
                print(f"{title}: {error}")
                continue
            for beams in map(int, options.beams.split(",")):
                parity = verify_export(to, loaded, Path(folder) / to, lines, beams)
                all_hold &= parity.holds
                print(f"{title}, beam {beams}: {parity}", flush=True)
                for difference in parity.differences:
                    print(f"  line {difference.line}: the scores are {difference.gap:.1e} apart")
                    print(f"    {difference.hyp}\n    {difference.other_hyp}")
    return 0 if all_hold else 1


if __name__ == "__main__":
    sys.exit(main())
