"""Hooks of mkdocs: pages made of the program itself, formulas as MathML, links out of docs/.

Settings and commands are printed by the package, so that they cannot fall behind it. Formulas become MathML,
which browsers draw themselves: the site loads no script from elsewhere.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

from customized_grpo.cli.main import command_tree
from customized_grpo.config.reference import markdown as settings

ROOT = Path(__file__).parents[2]
DISPLAYED = re.compile(r"^\$\$\n(.+?)\n\$\$$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<![\\$`\w])\$([^$`\n]+)\$(?![\w$])")
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
OUTSIDE = re.compile(r"\]\((\.\./)+SECURITY\.md\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that the program prints."""
    pages = {
        "reference/settings.md": settings(),
        "reference/commands.md": commands(),
        "security.md": (ROOT / "SECURITY.md").read_text(encoding="utf-8").replace("](docs/", "]("),
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn formulas into MathML, and links to files beside docs/ into links to their pages."""
    up = "../" * page.file.src_uri.count("/")
    markdown = OUTSIDE.sub(f"]({up}security.md)", markdown)
    parts = CODE.split(markdown)  # every second part is code, in which a dollar is a dollar
    return "".join(part if number % 2 else with_formulas(part) for number, part in enumerate(parts))


def with_formulas(text: str) -> str:
    """Return a text with its formulas as MathML."""
    text = DISPLAYED.sub(lambda found: f"\n{convert(found[1], display='block')}\n", text)
    return INLINE.sub(lambda found: convert(found[1]), text)


def commands() -> str:
    """Return a page of all verbs, with their help as the terminal shows it."""
    group: Any = command_tree()
    lines = [
        "# Commands",
        "",
        "What `cgrpo VERB -h` prints. `cgrpo --install-completion` teaches your shell verbs and presets.",
    ]
    for name, command in group.commands.items():
        lines += section(f"cgrpo {name}", command)
        for inner, verb in getattr(command, "commands", {}).items():
            lines += section(f"cgrpo {name} {inner}", verb, level=3)
    return "\n".join(lines) + "\n"


def section(name: str, command: Any, level: int = 2) -> list[str]:
    """Return the heading and the help of one verb."""
    context = command.make_context(name, [], resilient_parsing=True, help_option_names=["-h", "--help"])
    context.info_name = name
    return ["", f"{'#' * level} {name}", "", "```text", command.get_help(context), "```"]
