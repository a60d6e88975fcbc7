"""UNO-1M: a million generated pairs with a consistency score.

Layout, from the card of huggingface.co/datasets/bytedance-research/UNO-1M (Apache-2.0, read 2026-11):
unpacked, the folder has `images/split1/*.png` and `labels/split1.json` (or everything in
`uno_1m_total_labels.json`, 848 MB), lists of `{"img_path1": "split1/a.png", "img_path2", "caption":
{"img_path1": text, "img_path2": text, "judgment", "subject": [text]}, "vlm_filter_cot": {"score_part": {...},
"score_final": 3.5}}`. The card recommends `score_final` >= 3.5 for subject-driven generation and says that 4
is perfect, so a score outside 0..4 is no score; users of the labels report one of 131184.67.

The first image is the reference, the second the target with its caption as the prompt. The data name no
subject that could be told apart from others of its class, so a pair is one: its file name without the last
three numbers (which of the pair, and its size).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from customized_grpo.data.adapters.base import (
    Draft,
    Dropped,
    Item,
    Layout,
    Options,
    SourceImage,
    an_object,
    attempt,
    number_of,
    read_json_list,
    source_folder,
    source_image,
    text_of,
)
from customized_grpo.data.row_checks import RowProblem
from customized_grpo.errors import UserError

MIN_SCORE = 3.5
PERFECT = 4.0
TOTAL = "uno_1m_total_labels.json"

_VIEW = re.compile(r"_\d+_\d+x\d+$")


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the pairs whose score passes; the labels are read one file at a time.

    Raises:
        UserError: The folder has no labels, or they are not lists.
    """
    folder = source_folder(source)
    files = sorted((folder / "labels").glob("*.json"))
    if not files and (folder / TOTAL).is_file():
        files = [folder / TOTAL]  # 848 MB at once, so the parts are taken where they are
    if not files:
        raise UserError(
            f"{source} has neither labels/*.json nor {TOTAL}",
            hint="SOURCE is the unpacked folder of bytedance-research/UNO-1M.",
        )
    minimum = MIN_SCORE if options.min_score is None else options.min_score
    if not 0 <= minimum <= PERFECT:
        raise UserError(
            f"--min-score {minimum:g}: scores lie between 0 and {PERFECT:g}",
            hint=f"Leave it out for {MIN_SCORE:g}, or give a number between them.",
        )
    number = 0
    for file in files:
        for item in read_json_list(file):
            number += 1
            yield attempt(number, partial(_draft, folder, number, item, minimum))


def _draft(folder: Path, number: int, raw: object, minimum: float) -> Draft | Dropped:
    item = an_object(raw)
    judged = item.get("vlm_filter_cot")
    score = number_of(judged.get("score_final")) if isinstance(judged, dict) else None
    if score is None:
        return Dropped(number, "no score_final")
    if not 0 <= score <= PERFECT:
        return Dropped(number, f"score_final outside 0 to {PERFECT:g}")
    if score < minimum:
        return Dropped(number, f"score_final < {minimum:g}")
    caption = item.get("caption")
    if not isinstance(caption, dict):
        raise RowProblem("`caption` must be an object")
    target = _source_image(folder, "img_path2", text_of(item, "img_path2"))
    return Draft(
        number=number,
        id=PurePosixPath(target.name).with_suffix("").as_posix().removeprefix("images/"),
        prompt=text_of(caption, "img_path2"),
        references=(_source_image(folder, "img_path1", text_of(item, "img_path1")),),
        subject=_VIEW.sub("", PurePosixPath(text_of(item, "img_path1")).with_suffix("").as_posix()),
        target=target,
        meta={"score_final": score, "names": caption.get("subject"), "judgment": caption.get("judgment")},
    )


def _source_image(folder: Path, key: str, name: str) -> SourceImage:
    return source_image(folder, key, f"images/{name}")


LAYOUT = Layout(
    name="uno-1m",
    title="UNO-1M: images/ and labels/*.json",
    licence="Apache-2.0",
    takes=frozenset({"min_score"}),
    read=read,
)
