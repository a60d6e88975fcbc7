"""What a browser would make of a page, for the tests of the pages."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """What a browser would see: tags with attributes, visible text, and the headings of figures."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.headings: list[str] = []
        self.feed(self.source)

    @classmethod
    def of_file(cls, path: Path) -> Page:
        return cls(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        where = self._open[-1] if self._open else ""
        if where in ("script", "style"):
            return
        if where in ("h2", "h3"):
            self.headings.append(data)
        self.text += " " + " ".join(data.split())

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def assert_nothing_is_fetched(seen: Page) -> None:
    for tag, attributes in seen.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            if attributes.get(name) is not None:
                # "#": a place of the page itself
                assert (attributes[name] or "").startswith(("data:image/", "#")), (tag, name)
    assert not seen.of("link") and not seen.of("iframe")
    assert "url(" not in seen.source and "@import" not in seen.source
    assert set(re.findall(r"https?://[^\"'\s<]+", seen.source)) == {"http://www.w3.org/2000/svg"}
