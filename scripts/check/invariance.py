"""Whether a translation depends on its neighbours: a file at several batch sizes and shuffled,
every changed line listed.

Usage: python scripts/check/invariance.py MODEL SOURCE [--lines 1000] [--batch-sizes 1,7,64]
[--precision fp32]

A line may change where two hypotheses score the same but for rounding: each changed line is shown
with both scores; below 1e-4 apart it is a tie. Exits 1 where a line changed that is no tie.
"""

import argparse
import random
import sys
from itertools import islice

from mt import Translator
from mt.data.sources import read_text
from mt.decode.translator import Translation

TIE = 1e-4


def translations(translator: Translator, lines: list[str], batch_size: int) -> list[Translation]:
    """The best translation of each line at one batch size."""
    translator.decode = translator.decode.model_copy(update={"batch_size": batch_size})
    return [found[0] for found in translator.translate_stream(lines)]


def main() -> None:
    """Compare every setting with the first."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("source")
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--batch-sizes", default="1,7,64")
    parser.add_argument("--precision", default="fp32")
    args = parser.parse_args()
    translator = Translator.load(args.model, precision=args.precision)
    lines = list(islice(read_text(args.source), args.lines))
    sizes = [int(size) for size in args.batch_sizes.split(",")]
    order = random.Random(1).sample(range(len(lines)), len(lines))
    results = {f"batch size {size}": translations(translator, lines, size) for size in sizes}
    shuffled = translations(translator, [lines[i] for i in order], sizes[-1])
    in_order = dict(zip(order, shuffled, strict=True))
    results[f"batch size {sizes[-1]}, shuffled"] = [in_order[i] for i in range(len(lines))]
    (first_name, first), *others = results.items()
    worst = 0.0
    for name, found in others:
        changed = [i for i in range(len(lines)) if found[i].text != first[i].text]
        print(f"{name} against {first_name}: {len(changed)} of {len(lines)} lines changed")
        for i in changed:
            worst = max(worst, abs(found[i].score - first[i].score))
            print(f"  line {i + 1}: {first[i].score:.6f} {first[i].text!r}")
            print(f"  {'':{len(str(i + 1)) + 6}}{found[i].score:.6f} {found[i].text!r}")
    print(f"largest difference of scores on a changed line: {worst:.1e} (a tie is below {TIE:.0e})")
    sys.exit(worst >= TIE)


if __name__ == "__main__":
    main()
