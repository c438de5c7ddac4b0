"""Draw fifty docstrings, comments and messages for a reader who does not know the code.

Usage: python tests/draw_prose.py [SEED]      (default: the hash of the current commit)

Each text is printed with its place and the code around it. At most two of fifty should need a
second reading.
"""

import ast
import io
import random
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("mt", "scripts", "tests")
COUNT = 50
DIRECTIVES = ("# noqa", "# type:", "# fmt:", "#!")  # comments for tools
MIN_WORDS = 4  # in a message; shorter strings are mostly keys and names


def docstrings(tree: ast.AST) -> Iterator[tuple[int, int]]:
    """Yield the first and last line of every docstring."""
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in ast.walk(tree):
        if isinstance(node, kinds) and ast.get_docstring(node):
            text = node.body[0]
            yield text.lineno, text.end_lineno or text.lineno


def comments(source: str) -> Iterator[tuple[int, int]]:
    """Yield the first and last line of every comment; consecutive lines form one comment."""
    first = last = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and not token.string.startswith(DIRECTIVES):
            line = token.start[0]
            if line != last + 1 and first:
                yield first, last
            first, last = (first if line == last + 1 and first else line), line
    if first:
        yield first, last


def messages(tree: ast.AST, documented: set[int]) -> Iterator[tuple[int, int]]:
    """Yield the first and last line of every string of several words, except docstrings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(
                str(part.value) for part in node.values if isinstance(part, ast.Constant)
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        if len(text.split()) >= MIN_WORDS and "\n" not in text and node.lineno not in documented:
            yield node.lineno, node.end_lineno or node.lineno


def main() -> None:
    """Draw texts at random and print them."""
    head = ["git", "rev-parse", "HEAD"]
    seed = sys.argv[1] if sys.argv[1:] else subprocess.check_output(head, cwd=ROOT, text=True)
    places = set()
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        tree = ast.parse(source)
        prose = list(docstrings(tree))
        documented = {line for first, last in prose for line in range(first, last + 1)}
        prose += comments(source)
        if path.relative_to(ROOT).parts[0] != "tests":  # strings in tests are data
            prose += messages(tree, documented)
        places |= {(path, first, last) for first, last in prose}
    print(f"seed {seed.strip()}, {COUNT} of {len(places):,} texts\n")
    for number, place in enumerate(random.Random(seed.strip()).sample(sorted(places), COUNT), 1):
        path, first, last = place
        lines = path.read_text(encoding="utf-8").splitlines()
        print(f"[{number}] {path.relative_to(ROOT)}, line {first} to {last}")
        for index in range(max(0, first - 4), min(len(lines), last + 5)):
            mark = ">" if first <= index + 1 <= last else " "
            print(f"  {mark} {lines[index]}")
        print()


if __name__ == "__main__":
    main()
