"""Small real sources in every published layout, written file by file as their authors describe them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

UNO_1M_ROW = {
    "img_path1": "split1/class_Food_0_0_1_793x1024.png",
    "img_path2": "split1/class_Food_0_0_2_743x1024.png",
    "caption": {
        "img_path1": "a stew on a white surface",
        "img_path2": "a stew on a wooden table",
        "judgment": "same",
        "subject": ["stew"],
    },
    "vlm_filter_cot": {"score_part": {"Carrots": 3.0}, "score_final": 3.5},
}


def save(path: Path, colour: Any = "red", size: tuple[int, int] = (12, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def syncd(folder: Path, groups: int = 3) -> Path:
    """Groups of three views; masks at a quarter of the size whose faint values count as object."""
    items = []
    for group in range(groups):
        names = [f"cat_{group}_0_0_{view}.jpg" for view in range(3)]
        for view, name in enumerate(names):
            save(folder / name, (80 * group, 90 * view, 40), (16, 16))
            mask = Image.new("L", (4, 4), 0)
            mask.paste(200, (0, 0, 2, 4))
            (folder / "masks").mkdir(exist_ok=True)
            mask.save(folder / "masks" / name, quality=100)
        items.append(
            {
                "filenames": [f"/far/away/out/{name}" for name in names],
                "prompts": [f"cat {group} in scene {view}" for view in range(3)],
                "objaverse_id": "",
                "category": "deformable",
            }
        )
    write_json(folder / "metadata_0.json", items)
    return folder


def syncd_pairs(folder: Path, rows: int = 3) -> Path:
    items = []
    for row in range(rows):
        for view in range(2):
            save(folder / "images" / str(row) / f"{view}.png", (60 * row, 200 * view, 0))
        items.append(
            {
                "id": str(3040 + row),
                "category": "rigid",
                "category_description": "a red rusty post box.",
                "ref_img": f"{row}/0.png",
                "img": f"{row}/1.png",
                "ref_prompt": "a post box on a sidewalk.",
                "text": f"a post box on highway {row}.",
                "txt_save_path": "./datasets/a.pt",
                "vec_save_path": "./datasets/b.pt",
            }
        )
    return write_json(folder / "list.json", items)


def composite(left: str = "red", right: str = "blue") -> Image.Image:
    """The image of a Subjects200K row: white margins around two squares of 512 pixels."""
    image = Image.new("RGB", (1056, 528), "white")
    image.paste(left, (8, 8, 520, 520))
    image.paste(right, (528, 8, 1040, 520))
    return image


def subjects200k_row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "collection": "collection_2",
        "quality_assessment": {"compositeStructure": 5, "objectConsistency": 5, "imageQuality": 5},
        "description": {
            "item": f"chair {number}",
            "description_0": "a chair in a studio",
            "description_1": f"chair {number} on a beach",
            "category": "furniture",
            "description_valid": True,
        },
    } | changes


def subjects200k_folder(folder: Path, rows: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, row in enumerate(rows):
        composite().save(folder / f"{number}.png")
        lines.append(json.dumps({"file_name": f"{number}.png"} | row))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def encoded(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def uno_1m(folder: Path, scores: list[Any], split: str = "split1") -> Path:
    items = []
    for number, score in enumerate(scores):
        names = [f"{split}/class_Food_{number}_0_{view}_12x8.png" for view in (1, 2)]
        for view, name in enumerate(names):
            save(folder / "images" / name, (40 * number % 256, 255 * view, 7 * len(items)))
        item = UNO_1M_ROW | {"img_path1": names[0], "img_path2": names[1]}
        items.append(item | {"vlm_filter_cot": {} if score is None else {"score_final": score}})
    write_json(folder / "labels" / f"{split}.json", items)
    return folder


def uno(folder: Path) -> Path:
    for name, colour in (("dog/1.png", "red"), ("dog/2.png", "lime"), ("cup/1.png", "blue")):
        save(folder / name, colour)
    rows = [
        {"prompt": "a dog on a beach", "image_paths": ["dog/1.png"], "image_tgt_path": "dog/2.png"},
        {"prompt": "a dog and a cup", "image_paths": ["dog/1.png", "cup/1.png"]},
        {"prompt": "a cup", "image_path": "cup/1.png"},
    ]
    return write_json(folder / "list.json", rows)


def photos(folder: Path, subjects: tuple[str, ...] = ("red_backpack2", "dog")) -> Path:
    """A folder per subject with two photos, the first of which has a mask."""
    for number, subject in enumerate(subjects):
        for photo in range(2):
            save(folder / subject / f"0{photo}.png", (50 * number, 100 * photo, 9))
        save(folder / subject / "00.mask.png", 255, mode="L")
    return folder


def captions(folder: Path, count: int = 3) -> Path:
    """Photos of one subject, each with a caption beside it."""
    for photo in range(count):
        save(folder / f"0{photo}.png", (60 * photo, 9, 90))
        (folder / f"0{photo}.txt").write_text(f"my dog in scene {photo}\n")
    return folder


def hub(folder: Path, count: int = 3) -> Path:
    """A parquet file with images as their bytes."""
    import pyarrow
    import pyarrow.parquet

    rows = []
    for number in range(count):
        rows.append(
            {
                "caption": f"a dog in scene {number}",
                "image": {"bytes": encoded(Image.new("RGB", (12, 8), (60 * number, 0, 0))), "path": "x.png"},
                "target": {"bytes": encoded(Image.new("RGB", (12, 8), (9, 60 * number, 0))), "path": None},
                "subject": "dog",
            }
        )
    folder.mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    return folder


def cut_out(path: Path, size: tuple[int, int] = (8, 6)) -> Path:
    """An image that is transparent but for its left half."""
    pixels = np.full((size[1], size[0], 4), 255, np.uint8)
    pixels[:, size[0] // 2 :, 3] = 0
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def dreambench(folder: Path, classes: dict[str, str]) -> Path:
    def listing(title: str, outfits: int) -> str:
        """25 prompts, of which the last five change the subject and those before may dress it."""
        prompts = [
            *(f"a {{0}} {{1}} in {title} scene {n}" for n in range(20 - outfits)),
            *(f"a {{0}} {{1}} wearing hat {n}" for n in range(outfits)),
            *(f"a shade{n} {{0}} {{1}}" for n in range(5)),
        ]
        lines = [f"'{prompt}'.format(unique_token, class_token)," for prompt in prompts]
        return "\n".join(["prompt_list = [", *lines, "]"])

    for number, subject in enumerate(classes):
        for photo in range(3):
            save(folder / subject / f"0{photo}.jpg", (40 * number, 80 * photo, 0))
    rows = "\n".join(f"{subject},{name}" for subject, name in classes.items())
    (folder / "prompts_and_classes.txt").write_text(
        f"Classes\n\nsubject_name,class\n{rows}\n\nPrompts\n\nObject Prompts\n\n{listing('object', 0)}\n\n"
        f"Live Subject Prompts\n\n{listing('live', 10)}\n"
    )
    return folder
