"""A small dataset in the layout of DreamBooth's repository, drawn here: no photo of anybody is needed."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

PROMPTS = """Classes

subject_name,class
dog6,dog
teapot,teapot
fancy_boot,boot

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
'a {0} {1} in a chef outfit'.format(unique_token, class_token),
'a wet {0} {1}'.format(unique_token, class_token)
]
"""


def save_photo(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (48, 40)) -> Path:
    """Write an image of one colour with a darker middle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour)
    image.paste((colour[0] // 2, colour[1] // 3, colour[2] // 4), (12, 10, 36, 30))
    image.save(path)
    return path


def save_dreambooth(root: Path) -> Path:
    """Write three subjects of two to four photos, and the file of prompts."""
    for k, name in enumerate(("dog6", "teapot", "fancy_boot")):
        for n in range(2 + k):
            save_photo(root / "dataset" / name / f"{n:02d}.jpg", (200 - 60 * k, 40 + 70 * k, 30 + 50 * n))
    (root / "dataset" / "prompts_and_classes.txt").write_text(PROMPTS)
    return root
