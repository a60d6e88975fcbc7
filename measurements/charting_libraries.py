"""The curves of one report by four charting libraries, and what a reader gets of each, as a Markdown table.

    pip install --target libs plotly bokeh altair vl-convert-python
    python measurements/charting_libraries.py RUN --libraries libs

RUN is a finished run folder. Each library draws the same curves with its own defaults, told only to follow
the width of the window where it can, into one file that needs no network. Every file is opened in Debian's
chromium: at 420 pixels, in the dark, on paper, without JavaScript, under a pointer, and several times for the
time until the last chart is there.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from customized_grpo.pages.curves import held_out_line, rollouts_axis, training_line
from customized_grpo.pages.page import TEMPLATES
from customized_grpo.pages.plots.charts import line_chart
from customized_grpo.pages.plots.frame import Line, XAxis
from customized_grpo.pages.run_data import RunData, read_run

TRAINING = (
    "reward/prompt",
    "reward/identity",
    "advantage/conflict",
    "reward/prompt_group_std",
    "reward/identity_group_std",
    "diversity/in_group",
    "policy/grad_norm",
    "policy/kl",
)
HELD_OUT = ("judge/prompt", "judge/identity", "monitor/copy_score", "monitor/background_similarity")
REPEATS = 3
PHONE = {"width": 420, "height": 860}
DESKTOP = {"width": 1280, "height": 900}
PAPER = {"width": 688, "height": 1000}
BLUE = "#2f64fd"


@dataclass(frozen=True)
class Curve:
    """One chart.

    Attributes:
        title: Its heading.
        line: The values, with a band or the unsmoothed ones.
    """

    title: str
    line: Line


@dataclass(frozen=True)
class Library:
    """One way to draw the charts.

    Attributes:
        name: In the table.
        draw: Returns a whole page.
        ready: JavaScript that is true once the last chart is drawn.
    """

    name: str
    draw: Callable[[Sequence[Curve], XAxis], str]
    ready: str


def read_curves(run: RunData) -> list[Curve]:
    """Return the curves that the run has measured."""
    curves = []
    for key in TRAINING:
        line = training_line(run, key, "training", "prompt")
        if line is not None:
            curves.append(Curve(key, line))
    for key in HELD_OUT:
        line = held_out_line(run, key, "held-out", "prompt")
        if line is not None:
            curves.append(Curve(key, line))
    return curves


def draw_own(curves: Sequence[Curve], axis: XAxis) -> str:
    """Return the page as this project draws it."""
    style = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("charts.css", "base.css"))
    figures = ""
    for curve in curves:
        chart = line_chart([curve.line], axis, title=curve.title)
        figures += f"<figure><h3>{curve.title}</h3>{chart}</figure>"
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    body = f'<main><div class="figures">{figures}</div></main>'
    return (
        f'<!doctype html><html lang="en"><head>{head}<style>{style}</style></head><body>{body}</body></html>'
    )


def draw_plotly(curves: Sequence[Curve], axis: XAxis) -> str:
    """Return the page by plotly, its script within."""
    import plotly.graph_objects as go  # type: ignore[import-not-found]

    parts = []
    for number, curve in enumerate(curves):
        line = curve.line
        figure = go.Figure()
        if line.low is not None and line.high is not None:
            bounds = [*line.high, *reversed(line.low)]
            around = [*line.x, *reversed(line.x)]
            figure.add_scatter(
                x=around, y=bounds, fill="toself", line={"width": 0}, opacity=0.3, showlegend=False
            )
        if line.raw is not None:
            figure.add_scatter(x=line.raw_x or line.x, y=line.raw, opacity=0.3, name="single iterations")
        figure.add_scatter(x=line.x, y=line.y, name=line.name, line={"color": BLUE})
        figure.update_layout(title=curve.title, xaxis_title=axis.label, height=320)
        script: bool | str = number == 0
        parts.append(figure.to_html(full_html=False, include_plotlyjs=script, config={"responsive": True}))
    return _grid(parts)


def draw_bokeh(curves: Sequence[Curve], axis: XAxis) -> str:
    """Return the page by bokeh, its script within."""
    from bokeh.embed import file_html  # type: ignore[import-not-found]
    from bokeh.layouts import column  # type: ignore[import-not-found]
    from bokeh.models import HoverTool  # type: ignore[import-not-found]
    from bokeh.plotting import figure  # type: ignore[import-not-found]
    from bokeh.resources import INLINE  # type: ignore[import-not-found]

    charts = []
    for curve in curves:
        line = curve.line
        chart = figure(title=curve.title, height=300, sizing_mode="stretch_width", x_axis_label=axis.label)
        if line.low is not None and line.high is not None:
            chart.varea(line.x, line.low, line.high, fill_alpha=0.2)
        if line.raw is not None:
            chart.line(line.raw_x or line.x, line.raw, line_alpha=0.3)
        chart.line(line.x, line.y, line_width=2, color=BLUE, legend_label=line.name)
        chart.add_tools(HoverTool(mode="vline"))
        charts.append(chart)
    return str(file_html(column(*charts, sizing_mode="stretch_width"), INLINE, "curves"))


def draw_altair(curves: Sequence[Curve], axis: XAxis) -> str:
    """Return the page by altair, which is vega-lite, its script within."""
    import altair  # type: ignore[import-not-found]

    charts = []
    for curve in curves:
        line = curve.line
        lows = line.low or [None] * len(line.x)
        highs = line.high or [None] * len(line.x)
        rows = []
        for x, y, low, high in zip(line.x, line.y, lows, highs, strict=True):
            rows.append({"x": x, "y": y, "low": low, "high": high})
        data = altair.Data(values=rows)
        place = altair.X("x:Q", title=axis.label)
        tip = [altair.Tooltip("x:Q"), altair.Tooltip("y:Q")]
        layers = [altair.Chart(data).mark_line(color=BLUE, point=True).encode(x=place, y="y:Q", tooltip=tip)]
        if line.low is not None:
            layers.insert(
                0, altair.Chart(data).mark_area(opacity=0.2).encode(x=place, y="low:Q", y2="high:Q")
            )
        if line.raw is not None:
            raw = [{"x": x, "y": y} for x, y in zip(line.raw_x or line.x, line.raw, strict=True)]
            faint = altair.Chart(altair.Data(values=raw)).mark_line(opacity=0.3)
            layers.insert(0, faint.encode(x=place, y="y:Q"))
        charts.append(altair.layer(*layers).properties(title=curve.title, width=300, height=200))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        whole = altair.concat(*charts, columns=1)
        whole.save(str(path), inline=True, embed_options={"renderer": "svg"})
        return path.read_text(encoding="utf-8")


def _grid(parts: Sequence[str]) -> str:
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>'


LIBRARIES = (
    Library("own SVG", draw_own, "document.querySelectorAll('svg.chart .line').length >= COUNT"),
    Library(
        "plotly",
        draw_plotly,
        "document.querySelectorAll('.plotly-graph-div .main-svg .lines').length >= COUNT",
    ),
    Library("bokeh", draw_bokeh, "window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle"),
    Library("altair", draw_altair, "document.querySelectorAll('svg .mark-line path').length >= COUNT"),
)

SIZES = """
() => {
  const roots = [document];
  const texts = [];
  for (const root of roots) {
    for (const element of root.querySelectorAll('*')) {
      if (element.shadowRoot) roots.push(element.shadowRoot);
      const isText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
      if (!isText || element.closest('script, style, title, details')) continue;
      if (!element.getBoundingClientRect().width) continue;
      const matrix = element.getScreenCTM ? element.getScreenCTM() : null;
      const scale = matrix ? Math.hypot(matrix.a, matrix.b) : 1;
      texts.push(parseFloat(getComputedStyle(element).fontSize) * scale);
    }
  }
  return texts;
}
"""
"""Sizes of all letters that are text of the page; those painted on a canvas are not."""

SIDEWAYS = "() => document.documentElement.scrollWidth - innerWidth"
LIGHTNESS = "() => getComputedStyle(document.body).backgroundColor"
CANVAS = """
() => {
  const roots = [document];
  for (const root of roots) {
    for (const element of root.querySelectorAll('*')) {
      if (element.shadowRoot) roots.push(element.shadowRoot);
      if (element.tagName === 'CANVAS') return true;
    }
  }
  return false;
}
"""
"""Whether charts are painted, so that their letters cannot be found, copied or read out."""

NAMED = "() => document.querySelectorAll('[role=img][aria-label], [role=graphics-document]').length"


def measure(library: Library, path: Path, count: int, chromium: Any) -> list[str]:
    """Return the cells of one library.

    Args:
        library: The library.
        path: Its page.
        count: Charts on it.
        chromium: The browser of Playwright.
    """
    ready = library.ready.replace("COUNT", str(count))
    content = path.read_bytes()
    phone = _open(chromium, path, ready, viewport=PHONE)
    sizes = phone.evaluate(SIZES)
    smallest = "painted" if phone.evaluate(CANVAS) or not sizes else f"{min(sizes):.1f} px"
    sideways = max(0, phone.evaluate(SIDEWAYS))
    named = phone.evaluate(NAMED)
    dark = _open(chromium, path, ready, viewport=DESKTOP, color_scheme="dark")
    is_dark = _brightness(dark) < 128
    paper = _open(chromium, path, ready, viewport=DESKTOP)
    paper.emulate_media(media="print")
    paper.set_viewport_size(PAPER)
    paper.wait_for_timeout(1000)
    cut = max(0, paper.evaluate(SIDEWAYS))
    still = chromium.new_context(viewport=DESKTOP, java_script_enabled=False).new_page()
    still.goto(path.as_uri())
    without = _variety(still) > 1000
    hover = _reads_under_pointer(_open(chromium, path, ready, viewport=DESKTOP))
    times = [_time(chromium, path, ready) for _ in range(REPEATS)]
    return [
        library.name,
        f"{len(content) / 1000:,.0f} kB",
        f"{len(gzip.compress(content)) / 1000:,.0f} kB",
        smallest,
        f"{sideways} px" if sideways else "no",
        "yes" if is_dark else "no",
        f"{cut} px too wide" if cut else "fits",
        "yes" if without else "blank",
        "yes" if hover else "no",
        f"{named} of {count}",
        f"{statistics.median(times):.0f} ms",
    ]


def _open(chromium: Any, path: Path, ready: str, **options: Any) -> Any:
    page = chromium.new_context(**options).new_page()
    page.goto(path.as_uri(), timeout=120_000)
    page.wait_for_function(ready, timeout=120_000)
    return page


def _time(chromium: Any, path: Path, ready: str) -> float:
    """Return milliseconds from the start of the navigation until the last chart is there."""
    page = _open(chromium, path, ready, viewport=DESKTOP)
    milliseconds: float = page.evaluate(
        "() => new Promise((done) => requestAnimationFrame(() => done(performance.now())))"
    )
    page.context.close()
    return milliseconds


def _pixels(page: Any) -> Any:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(page.screenshot())).convert("RGB")


def _brightness(page: Any) -> float:
    """Return the mean lightness of what is in sight, 0 to 255."""
    from PIL import ImageStat

    return float(ImageStat.Stat(_pixels(page).convert("L")).mean[0])


def _reads_under_pointer(page: Any) -> bool:
    """Return whether something appears where the pointer crosses the first chart."""
    before = _pixels(page)
    for step in range(30):
        page.mouse.move(120 + 8 * step, 180)
        page.wait_for_timeout(20)
        if step % 6 == 5 and _pixels(page).tobytes() != before.tobytes():
            return True
    return False


def _variety(page: Any) -> int:
    """Return how many pixels in sight differ from the one in the corner."""
    image = _pixels(page)
    corner = image.getpixel((0, 0))
    return sum(count for count, colour in image.getcolors(2**24) or [] if colour != corner)


HEAD = (
    "library", "page", "gzipped", "smallest text at 420 px", "scrolls sideways at 420 px", "follows dark",
    "on A4", "without JavaScript", "reads under a pointer", "charts named for screen readers", "until drawn",
)  # fmt: skip


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a finished run folder")
    parser.add_argument(
        "--libraries", type=Path, nargs="*", default=[], help="folders of pip install --target"
    )
    parser.add_argument("--only", nargs="*", default=[library.name for library in LIBRARIES])
    parser.add_argument("--keep", type=Path, help="where the pages stay; by default nowhere")
    arguments = parser.parse_args()
    # at the end: what this project has pinned comes first
    sys.path += [str(folder.resolve()) for folder in arguments.libraries]
    from playwright.sync_api import sync_playwright

    run = read_run(arguments.run)
    curves = read_curves(run)
    print(f"{len(curves)} charts\n")
    print("| " + " | ".join(HEAD) + " |")
    print("|" + "---|" * len(HEAD))
    executable = os.environ.get("CGRPO_CHROMIUM") or shutil.which("chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        for library in [library for library in LIBRARIES if library.name in arguments.only]:
            path = (arguments.keep or Path(folder)) / f"{library.name.replace(' ', '-')}.html"
            path.write_text(library.draw(curves, rollouts_axis(run)), encoding="utf-8")
            print("| " + " | ".join(measure(library, path, len(curves), chromium)) + " |", flush=True)
        chromium.close()


if __name__ == "__main__":
    main()
