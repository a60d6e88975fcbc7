"""A list of mistakes that fits a screen: a mistake of the whole data set is made once per row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

EACH = 3
"""Mistakes of a kind that are listed."""
LONGEST = 100
"""Lines of a list."""

# What differs between mistakes of one kind: names in quotes, paths, numbers.
_PARTICULAR = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\S*/\S*|\d+""")


def a_few(mistakes: Iterable[tuple[str, str]]) -> list[str]:
    """Return lines of "where: mistake", the first three of each kind; the others are counted.

    Args:
        mistakes: Where (or nothing) and what, in the order of the list.
    """
    counts: Counter[str] = Counter()
    last_listed: dict[str, str] = {}
    lines: list[str] = []
    total = 0
    for where, mistake in mistakes:
        total += 1
        # Two mistakes are of one kind if they differ in names and numbers alone.
        kind = _PARTICULAR.sub("", mistake)
        counts[kind] += 1
        if counts[kind] <= EACH and len(lines) < LONGEST:
            lines.append(f"{where}: {mistake}" if where else mistake)
            last_listed[kind] = where
    listed = len(lines)
    for kind, where in last_listed.items():
        more = counts[kind] - EACH
        if more > 0:
            listed += more
            lines.append(f"... and {more:,} more like {where or 'these'}")
    if total > listed:
        lines.append(f"... and {total - listed:,} more")
    return lines
