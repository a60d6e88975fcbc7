"""A real browser, and what a page looks like in it: sizes of letters, contrast, what sticks out.

It takes Debian's chromium (`apt-get install chromium`), or what CGRPO_CHROMIUM names.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import Any

CHROMIUM = os.environ.get("CGRPO_CHROMIUM") or shutil.which("chromium")
NO_CHROMIUM = "there is no chromium: apt-get install chromium"

PHONE = {"width": 420, "height": 860}
DESKTOP = {"width": 1280, "height": 900}
PAPER = {"width": 688, "height": 1000}
"""Width of A4 between margins of 14 mm, at 96 pixels an inch."""


@contextlib.contextmanager
def chromium(sync_api: Any) -> Iterator[Any]:
    """Start the browser; `sync_api` is Playwright's, which a test gets by `pytest.importorskip`."""
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


_TEXTS = """
const texts = () => {
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode;
    const element = node.parentElement;
    if (!node.textContent.trim() || element.closest('script, style, title, option, :disabled')) continue;
    if (!element.checkVisibility({ visibilityProperty: true, contentVisibilityAuto: true })) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (box.width > 1 && box.height > 1) found.push({ node, element, box, words: node.textContent.trim() });
  }
  return found;
};
"""

SIZES = (
    _TEXTS
    + """
() => texts().map(({ element, words }) => {
  const svg = element.closest('svg');
  const scale = svg ? element.getScreenCTM().a : 1;
  const turned = svg ? Math.hypot(element.getScreenCTM().a, element.getScreenCTM().b) : 1;
  return [parseFloat(getComputedStyle(element).fontSize) * (svg ? turned : scale), words];
})
"""
)
"""[size of the letters in CSS pixels, words] of every text in sight."""

CONTRASTS = (
    _TEXTS
    + """
() => {
  const rgba = (text) => {
    const parts = text.match(/[\\d.]+/g).map(Number);
    return parts.length > 3 ? parts : [...parts, 1];
  };
  const over = (top, under) => [0, 1, 2].map((i) => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const behind = (element) => {
    if (!element) return [255, 255, 255, 1];
    const own = rgba(getComputedStyle(element).backgroundColor);
    return own[3] === 1 ? own : over(own, behind(element.parentElement));
  };
  const light = (colour) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const opacity = (element) =>
    element ? Number(getComputedStyle(element).opacity) * opacity(element.parentElement) : 1;
  return texts().map(({ element, words }) => {
    const style = getComputedStyle(element);
    const ink = rgba(element.closest('svg') ? style.fill : style.color);
    ink[3] *= opacity(element);
    const page = behind(element.closest('svg') || element);
    const [low, high] = [light(over(ink, page)), light(page)].sort((a, b) => a - b);
    return [(high + 0.05) / (low + 0.05), words];
  });
}
"""
)
"""[contrast by WCAG 2, words] of every text in sight, against the background of the page around it."""

STICKING_OUT = (
    _TEXTS
    + """
() => texts().filter(({ element, box }) => {
  const svg = element.closest('svg');
  if (!svg) return false;
  const frame = svg.getBoundingClientRect();
  const isWide = box.left < frame.left - 1 || box.right > frame.right + 1;
  return isWide || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
}).map(({ element, words }) => [element.closest('svg').getAttribute('aria-label'), words])
"""
)
"""[chart, words] of every label that leaves its chart."""

OVERLAPS = """
() => {
  const found = [];
  for (const svg of document.querySelectorAll('svg.chart:not(.cell):not(.share)')) {
    const title = svg.getAttribute('aria-label');
    const texts = [...svg.querySelectorAll('text')];
    const boxes = texts.map((text) => [text.getBoundingClientRect(), text.textContent]);
    boxes.forEach(([a, words], i) => boxes.slice(i + 1).forEach(([b, others]) => {
      const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
      const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
      // lines of text may touch: a box of text is higher than its letters
      const isCovered = width > 1 && height > 0.45 * Math.min(a.height, b.height);
      if (isCovered) found.push([title, words, others]);
    }));
  }
  return found;
}
"""
"""[chart, words, words] of every two labels of a chart that cover each other."""

SIDEWAYS = "() => document.documentElement.scrollWidth - innerWidth"
"""By how many pixels a page is wider than its window."""
