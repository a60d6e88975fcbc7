"""Long pages begin with their contents, and each entry leads to a heading."""

from __future__ import annotations

import re

from comparison_results import comparison
from customized_grpo.pages.comparison_page import render_comparison_page
from customized_grpo.pages.contents import Contents


def test_the_contents_lead_to_every_section_in_reading_order() -> None:
    source = render_comparison_page(comparison())
    nav = source[source.index('<nav class="contents"') : source.index("</nav>")]
    entries = re.findall(r'<a href="#([^"]+)">([^<]+)</a>', nav)
    headings = re.findall(r'<h2 id="([^"]+)">([^<]+)</h2>', source)
    assert entries == headings and len(entries) >= 7
    assert source.index("</nav>") < source.index(f'id="{headings[0][0]}"')


def test_an_address_is_there_once_and_is_a_word() -> None:
    contents = Contents()
    for title in ("All arms", "All arms", '"><script>', "\u00e9"):
        contents.heading(title)
    addresses = [entry.address for entry in contents.entries]
    assert addresses == ["all-arms", "all-arms-2", "script", "section"]


def test_a_heading_is_escaped_and_without_address_where_reports_stand_side_by_side() -> None:
    assert Contents().heading("<b>") == '<h2 id="b">&lt;b&gt;</h2>'
    contents = Contents(addressed=False)
    assert contents.heading("a") == "<h2>a</h2>" and not contents.entries
