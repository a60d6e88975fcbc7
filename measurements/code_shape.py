"""Counts that say how densely the code is packed; `tests/contracts/test_code_shape.py` holds it to limits.

    python measurements/code_shape.py                # a table of every room of src
    python measurements/code_shape.py src -v         # and the places to unpack

Lines are lines of code, neither blank nor docstring. A nested comprehension is one inside another, or one
with several `for`. A generator unpacking is `a, b = (f(x) for x in y)`, which hides how many values there
are. Comments at the end of a line also count; their share is per line of code.
"""

from __future__ import annotations

import argparse
import ast
import io
import sys
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

Comprehension = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

LONG_FILE = 400
"""Lines above which a file is listed as long."""


@dataclass
class Shape:
    """Counts of one or more files.

    Attributes:
        lines: Lines of code, without blank lines and docstrings.
        comments: Lines with a comment.
        nested: Places of nested comprehensions.
        unpacked: Places where a generator or comprehension is unpacked into several names.
        long: Files of more than `LONG_FILE` lines.
    """

    lines: int = 0
    comments: int = 0
    nested: list[str] = field(default_factory=list)
    unpacked: list[str] = field(default_factory=list)
    long: list[str] = field(default_factory=list)

    def add(self, other: Shape) -> None:
        """Add the counts of another shape."""
        self.lines += other.lines
        self.comments += other.comments
        self.nested += other.nested
        self.unpacked += other.unpacked
        self.long += other.long

    @property
    def nested_per_1000(self) -> float:
        """Return nested comprehensions per 1,000 lines."""
        return 1000 * len(self.nested) / max(1, self.lines)

    @property
    def comment_share(self) -> float:
        """Return comments per line of code."""
        return self.comments / max(1, self.lines)


def measure(file: Path) -> Shape:
    """Return the counts of one Python file."""
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    shape = Shape(lines=_code_lines(text, tree), comments=_comments(text))
    if text.count("\n") > LONG_FILE:
        shape.long.append(f"{file}: {text.count(chr(10))}")
    for node in ast.walk(tree):
        if isinstance(node, Comprehension):
            inner = [part for part in ast.walk(node) if isinstance(part, Comprehension) and part is not node]
            shape.nested += [f"{file}:{part.lineno}" for part in inner]
            if len(node.generators) > 1:
                shape.nested.append(f"{file}:{node.lineno}")
        if isinstance(node, ast.Assign) and _unpacks_comprehension(node):
            shape.unpacked.append(f"{file}:{node.lineno}")
    shape.nested = sorted(set(shape.nested))
    return shape


def _code_lines(text: str, tree: ast.Module) -> int:
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        # a text that stands alone documents what is above it: a module, a class, a function or a field
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            docstrings.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    numbered = enumerate(text.splitlines(), start=1)
    return sum(bool(line.strip()) for number, line in numbered if number not in docstrings)


def _comments(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(token.type == tokenize.COMMENT for token in tokens)


def measure_folder(folder: Path) -> dict[str, Shape]:
    """Return the counts of every room: each folder right below the package, and its loose files as "."."""
    rooms: dict[str, Shape] = {}
    for file in sorted(folder.rglob("*.py")):
        parts = file.relative_to(folder).parts
        room = parts[0] if len(parts) > 1 else "."
        rooms.setdefault(room, Shape()).add(measure(file))
    return rooms


def _unpacks_comprehension(node: ast.Assign) -> bool:
    several = isinstance(node.targets[0], ast.Tuple | ast.List)
    return several and isinstance(node.value, Comprehension)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("src"))
    parser.add_argument("-v", "--verbose", action="store_true", help="also list the places")
    arguments = parser.parse_args()
    package = arguments.folder / "customized_grpo"
    rooms = measure_folder(package if package.is_dir() else arguments.folder)
    total = Shape()
    print(f"{'room':14} {'lines':>7} {'comments':>8} {'nested':>6} {'/1,000':>6} {'unpacked':>8} {'long':>4}")
    for room, shape in rooms.items():
        print(_row(room, shape))
        total.add(shape)
    print(_row("all", total))
    if arguments.verbose:
        print("\n".join([*total.nested, *total.unpacked, *total.long]))
    return 0


def _row(name: str, shape: Shape) -> str:
    return (
        f"{name:14} {shape.lines:7,} {shape.comment_share:8.1%} {len(shape.nested):6} "
        f"{shape.nested_per_1000:6.1f} {len(shape.unpacked):8} {len(shape.long):4}"
    )


if __name__ == "__main__":
    sys.exit(main())
