"""Check that the translation of a line does not depend on the other lines in its batch.

Usage: python scripts/check/invariance.py MODEL SOURCE [--lines 1000] [--batch-sizes 1,7,64]
           [--precision fp32]

A file is translated at several batch sizes and in shuffled order. Every line whose translation
changes is printed with both translations and their scores. A translation may change if two
hypotheses score the same up to rounding: scores less than 1e-4 apart count as a tie. The exit code
is 1 if a changed line is not a tie.
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
    """Return the best translation of each line at the given batch size."""
    translator.decode = translator.decode.model_copy(update={"batch_size": batch_size})
    return [hyps[0] for hyps in translator.translate_stream(lines)]


def main() -> None:
    """Translate with every setting, and compare the results with those of the first setting."""
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
    for name, hyps in others:
        changed = [i for i in range(len(lines)) if hyps[i].text != first[i].text]
        print(f"{name} against {first_name}: {len(changed)} of {len(lines)} lines changed")
        for i in changed:
            worst = max(worst, abs(hyps[i].score - first[i].score))
            print(f"  line {i + 1}: {first[i].score:.6f} {first[i].text!r}")
            print(f"  {'':{len(str(i + 1)) + 6}}{hyps[i].score:.6f} {hyps[i].text!r}")
    print(f"changed lines differ in score by at most {worst:.1e} (less than {TIE:.0e} is a tie)")
    sys.exit(worst >= TIE)


if __name__ == "__main__":
    main()
