"""Every command of the documentation is run, or there is a reason why it is not.

The runs, photos and data that commands speak of are stand-ins: a run of `toybox-smoke`, toys for photos.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from commands import run_here
from documented import COMMANDS, Command

pytestmark = pytest.mark.slow

WEIGHTS = "a published checkpoint, whose weights are not here"
RECIPE = "a recipe of the reader's; its options and settings are checked by test_commands.py"
LONG = "it trains or examines for minutes; tests of its room run it shorter"
DATA = "a data set or model file to download"
UNFINISHED = "a run that was stopped; tests/training/test_resume.py has some"
SERVER = "it serves until it is stopped; tests of its room start it"
NAMED = "no command to run: a sentence names a verb, or letters stand for words"

NOT_RUN = {
    r"(train|doctor|plan|init|config show|benchmark run|generate) \S*(flux|klein|FLUX)": WEIGHTS,
    r"(train|doctor|plan|compare|serve-rewards|config show) (my|mine|dog)\.yaml": RECIPE,
    r"(train|doctor) examples/photos/recipe\.yaml": "real photos; tests/docs/test_photos_recipe.py runs it",
    r"doctor (toybox|two-scale)": LONG,
    r"train toybox( |$)": LONG,
    r"compare (toybox|two-scale) ": LONG,
    r"toybox pretrain": LONG,
    r"benchmark run (runs|photos|tiny)": DATA,
    r"benchmark compare": DATA,
    r"data convert (dreambench|syncd|subjects200k|hub)": DATA,
    r"data (check|masks) (data/(syncd|s200k|train)|photos/)": DATA,
    r"data masks": DATA,
    r"data check photos": DATA,
    r"init \S+ data(/syncd)? ": DATA,
    r"(serve-rewards|studio)( |$)": SERVER,
    r"train toybox-smoke .*my_rules|data convert my_layouts": "tests/docs/test_extending.py runs the page",
    r"export .*--push": "it sends to the hub",
    r".*\b(RUN|RECIPE|NAME|PRESET|STEP|STAGE)\b": NAMED,
    r"train \.\.\.$": NAMED,
    r"train flux1-kontext-8gpu": WEIGHTS,
    r"resume runs/(dog|first|toybox-smoke)( train\.iterations=400)?$": UNFINISHED,
    r"export runs/toybox --checkpoint 60": "a run of 60 iterations",
    r"[a-z-]+( (run|check|convert|hub|--[a-z]+))?$": NAMED,
}
"""Commands by how they begin, and why they are not run here."""

RUN = [
    "config presets",
    "config show toybox",
    "--help",
    "serve-rewards --help",
    "env",
    "toybox export toys --subjects 1",
    "plan toybox",
    "data convert folder photos data/dog --prompts prompts.txt",
    "data convert folder photos data/validation --prompts validation.txt",
    "data convert folder photos data/mine --prompts prompts.txt --held-out 8",
    "data check data/dog",
    "data check data/mine",
    "init flux2-klein-24gb data/dog dog.yaml",
    "report runs/dog",
    "compare runs/first runs/second",
    "compare runs/naive runs/ours",
    "evaluate runs/mine",
    "export runs/first --format comfyui",
    "export runs/dog --format comfyui",
    "export runs/dog --checkpoint best --format comfyui",
    "export runs/mine --checkpoint best --out best",
    "export runs/mine --merge adapter",
    "export runs/mine --merge transformer",
    "export runs/toybox",
    "export runs/toybox --format comfyui",
    "export runs/toybox --format kohya --out shelf/toy",
    "export runs/toybox --precision bf16 --out small",
    "generate runs/dog --prompt a dog on a beach --reference dreambooth/dataset/dog/00.jpg --grid",
    "generate runs/dog --checkpoint best --prompt my dog on the moon --reference photos/dog/02.jpg --grid",
    "generate runs/first --prompt our toy with a green ball on the left upon a brown floor at night "
    "--reference toys/images/train-00000-reference.png --grid",
    "generate runs/toybox --prompt a toy at night --prompt a toy beside a blue cone "
    "--reference toy.png --grid --out images",
]
"""Commands that are run, in this order."""

TOY_PROMPT = "our toy with a green ball on the left upon a brown floor at night"


def reasons(command: Command) -> list[str]:
    return [reason for pattern, reason in NOT_RUN.items() if re.match(pattern, command.text)]


def test_every_command_is_run_or_has_a_reason() -> None:
    texts = {command.text: command for command in COMMANDS}
    assert [text for text, command in texts.items() if text not in RUN and not reasons(command)] == []
    assert [text for text in RUN if text not in texts] == [], "not in the documentation any more"


def test_no_reason_is_left_over() -> None:
    others = [command.text for command in COMMANDS if command.text not in RUN]
    assert [pattern for pattern in NOT_RUN if not any(re.match(pattern, text) for text in others)] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the commands speak of: runs, photos of subjects, prompts."""
    folder = tmp_path_factory.mktemp("reader")
    settings = [
        "train.iterations=1",
        "checkpoint.best=judge/prompt",
        "train.ema_decay=0.5",
        f"run.dir={folder / 'runs' / 'first'}",
    ]
    assert run_here("train", "toybox-smoke", *settings).returncode == 0
    for name in ("second", "dog", "mine", "toybox", "naive", "ours"):
        shutil.copytree(folder / "runs" / "first", folder / "runs" / name)
    toys = folder / "made"
    assert run_here("toybox", "export", str(toys), "--subjects", "12").returncode == 0
    images = sorted((toys / "images").glob("*.png"))
    for number in range(12):
        subject = folder / "photos" / ("dog" if number == 0 else f"subject{number:02d}")
        subject.mkdir(parents=True)
        for place, image in enumerate(images[2 * number : 2 * number + 2], start=1):
            shutil.copy(image, subject / f"{place:02d}.png")
    second = folder / "photos" / "dog" / "02.png"
    with Image.open(second) as photo:
        photo.save(second.with_suffix(".jpg"), quality=95)
    second.unlink()
    (folder / "dreambooth" / "dataset" / "dog").mkdir(parents=True)
    for name in ("dreambooth/dataset/dog/00.jpg", "toy.png"):
        shutil.copy(images[0], folder / name)
    (folder / "prompts.txt").write_text("a {} on a beach\nan oil painting of a {}\n")
    (folder / "validation.txt").write_text("a {} on the moon\n")
    return folder


@pytest.mark.parametrize("text", RUN)
def test_a_command_runs(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (words, *_) = [command.words for command in COMMANDS if command.text == text]
    monkeypatch.chdir(folder)
    prompts = [number for number, word in enumerate(words) if words[number - 1] == "--prompt"]
    # ToyBox's encoders know their own words alone
    exchanged = [TOY_PROMPT if number in prompts else word for number, word in enumerate(words)]
    for exported in folder.glob("runs/*/export"):  # by an earlier command on the same run
        shutil.rmtree(exported)
    done = run_here(*exchanged)
    assert done.returncode == 0, done.stderr
