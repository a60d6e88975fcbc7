"""The contents of a page: every section has an address, and the list at the top leads to them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Entry:
    """One section.

    Attributes:
        title: Its heading.
        address: Where the page has it, without the "#".
    """

    title: str
    address: str


class Contents:
    """Makes the headings of a page and remembers them.

    A template renders its sections first and the list after that, see ``templates/page.html.j2``.
    """

    def __init__(self, *, addressed: bool = True) -> None:
        """Begin a page.

        Args:
            addressed: Whether headings have addresses; not in a page around several reports, where one
                address would be there twice.
        """
        self.entries: list[Entry] = []
        self._addressed = addressed

    def heading(self, title: str) -> Markup:
        """Return the heading of a section and remember it."""
        if not self._addressed:
            return Markup("<h2>{}</h2>").format(title)
        address = self._address(title)
        self.entries.append(Entry(title, address))
        return Markup('<h2 id="{}">{}</h2>').format(address, title)

    def _address(self, title: str) -> str:
        """Return a title as a word that no other section has."""
        # letters and digits need no escape in a link; a title may have none of them
        word = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        # titles that differ in signs alone make the same word
        taken = {entry.address for entry in self.entries}
        address = word
        number = 2
        while address in taken:
            address = f"{word}-{number}"
            number += 1
        return address
