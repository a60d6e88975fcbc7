"""The doors of the package: for each kind of input a valid one, its changes, and the call that takes it."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from PIL import Image, ImageDraw

from customized_grpo.cli.main import main
from customized_grpo.config import load_config, preset_names
from fuzzing.mutations import (
    ODD_VALUES,
    dump_json,
    mutate_bytes,
    mutate_safetensors,
    mutate_text,
    mutate_tree,
)


class Target(ABC):
    """A kind of input.

    Args:
        folder: Where it may write; the input of the present call stays there, so that a failure can be kept.
    """

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._prepare()

    @abstractmethod
    def _prepare(self) -> None:
        """Write what all inputs of this kind are made from."""

    @abstractmethod
    def _make(self, draw: random.Random) -> Callable[[], int]:
        """Write one input; return the call that takes it and returns an exit status."""

    def make(self, number: int, seed: int) -> Callable[[], int]:
        """Write an input, which depends on its number and the seed alone; return the call that takes it."""
        return self._make(random.Random(f"{seed} {self.name} {number}"))

    def write(self, name: str, data: bytes) -> str:
        """Write a file into the folder and return its path."""
        path = self.folder / name
        path.write_bytes(data)
        return str(path)

    def command(self, *arguments: str) -> Callable[[], int]:
        """Return a call of the command line in this process."""
        return lambda: main(arguments)


class Recipes(Target):
    """Recipe files: `cgrpo config show`."""

    name = "recipes"

    def _prepare(self) -> None:
        presets = resources.files("customized_grpo.config") / "presets"
        self.texts = [(presets / f"{name}.yaml").read_text() for name in preset_names()]

    def _make(self, draw: random.Random) -> Callable[[], int]:
        text = draw.choice(self.texts)
        if draw.random() < 0.5:
            tree = mutate_tree(draw, yaml.safe_load(text))
            data = dump_json(tree)  # JSON is YAML as well, and keeps what YAML would escape
        else:
            data = mutate_text(draw, text).encode("utf-8", errors="surrogatepass")
        if draw.random() < 0.1:
            data = mutate_bytes(draw, data)
        return self.command("config", "show", self.write("recipe.yaml", data))


class Overrides(Target):
    """Settings on the command line: `cgrpo config show PRESET KEY=VALUE ...`."""

    name = "overrides"
    VALUES: Mapping[str, Sequence[Any]] = {}
    """Values by key; empty: odd ones for every key that there is."""

    def _prepare(self) -> None:
        settings = _dotted_settings(load_config("toybox").model_dump(mode="json"))
        # Half of the values are the preset's own: otherwise hardly any input would get past the first.
        half = len(ODD_VALUES)
        self.values = self.VALUES or {key: (*ODD_VALUES, *[value] * half) for key, value in settings}

    def _make(self, draw: random.Random) -> Callable[[], int]:
        arguments = []
        for _ in range(draw.randint(1, 3)):
            key = draw.choice(list(self.values))
            value = draw.choice(self.values[key])
            argument = f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            if draw.random() < 0.2:
                argument = mutate_text(draw, argument)
            # A command line holds no zero byte: the system ends an argument there.
            arguments.append(argument.replace("\x00", ""))
        (self.folder / "arguments.json").write_bytes(dump_json(arguments))
        return self.command("config", "show", draw.choice(("toybox", "flux1-uno")), "--", *arguments)


class Manifests(Target):
    """Lists of rows: `cgrpo data check`."""

    name = "manifests"

    def _prepare(self) -> None:
        for name, colour in (("a", "red"), ("b", "blue"), ("c", "green")):
            Image.new("RGB", (32, 32), colour).save(self.folder / f"{name}.png")
        _disk().save(self.folder / "mask.png")
        one = {"id": "1", "subject": "a", "references": ["a.png"], "masks": ["mask.png"], "target": "c.png"}
        two = {"id": "2", "subject": "b", "references": ["b.png", "c.png"], "masks": ["mask.png", "mask.png"]}
        common = {"prompt": "a toy at night"}
        self.rows = [{**common, **one}, {**common, **two}]

    def _make(self, draw: random.Random) -> Callable[[], int]:
        rows = copy.deepcopy(self.rows)
        index = draw.randrange(len(rows))
        rows[index] = mutate_tree(draw, rows[index])
        data = b"\n".join(dump_json(row) for row in rows)
        if draw.random() < 0.2:
            data = mutate_bytes(draw, data)
        return self.command("data", "check", self.write("manifest.jsonl", data))


class Images(Target):
    """Reference images and masks: `cgrpo data check` of a list with them."""

    name = "images"
    FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "AVIF")
    MODES = ("RGB", "RGBA", "L", "LA", "P", "1", "I;16", "CMYK")

    def _prepare(self) -> None:
        photo = Image.radial_gradient("L").resize((32, 32))
        self.references = _saved(photo, self.MODES, self.FORMATS)
        self.masks = _saved(_disk(), ("L", "RGB", "1", "P"), ("PNG", "GIF", "TIFF"))

    def _make(self, draw: random.Random) -> Callable[[], int]:
        reference = draw.choice(self.references)
        mask = draw.choice(self.masks)
        if draw.random() < 0.5:
            reference = mutate_bytes(draw, reference)
        else:
            mask = mutate_bytes(draw, mask)
        self.write("reference.png", reference)
        self.write("mask.png", mask)
        files = {"references": ["reference.png"], "masks": ["mask.png"]}
        row = {"id": "1", "prompt": "a toy", "subject": "a", **files}
        return self.command("data", "check", self.write("manifest.jsonl", dump_json(row)))


class Adapters(Target):
    """LoRA files: read for `generate --lora`, and made part of the base."""

    name = "adapters"

    def _prepare(self) -> None:
        from customized_grpo.policies.loading import load_pipeline, load_policy

        config = load_config("toybox-smoke")
        self.policy = load_policy(config.model, seed=0)
        self.valid = self.policy.save_lora(self.folder / "adapter").read_bytes()
        self.pipe = load_pipeline("toybox", precision="fp32")
        self.weights = copy.deepcopy(self.pipe.transformer.state_dict())

    def _make(self, draw: random.Random) -> Callable[[], int]:
        path = self.folder / "lora.safetensors"
        path.write_bytes(mutate_safetensors(draw, self.valid))
        return (lambda: self._load(path)) if draw.random() < 0.5 else (lambda: self._fuse(path))

    def _load(self, path: Path) -> int:
        self.policy.load_lora(path)
        return 0

    def _fuse(self, path: Path) -> int:
        from customized_grpo.policies.fuse import fuse_lora

        try:
            fuse_lora(self.pipe, str(path))
        finally:
            self.pipe.transformer.load_state_dict(self.weights)
        return 0


class ModelFolders(Target):
    """Models in diffusers' layout with one damaged file: loaded as training would."""

    name = "model folders"

    def _prepare(self) -> None:
        self.base = self.folder / "base"
        shutil.copytree(str(resources.files("customized_grpo.toybox") / "assets" / "base"), self.base)
        paths = [path for path in self.base.rglob("*") if path.is_file()]
        self.contents = {path: path.read_bytes() for path in sorted(paths)}
        self.changed: Path | None = None
        self.model = load_config("toybox-smoke", [f"model.path={self.base}"]).model

    def _make(self, draw: random.Random) -> Callable[[], int]:
        if self.changed is not None:
            self.changed.write_bytes(self.contents[self.changed])
        path = draw.choice(list(self.contents))
        path.unlink()
        if draw.random() < 0.95:  # otherwise it is missing
            path.write_bytes(_mutate_file(draw, path, self.contents[path]))
        self.changed = path
        return self._load

    def _load(self) -> int:
        from customized_grpo.policies.loading import load_policy

        load_policy(self.model, seed=0)
        return 0


class RunFolders(Target):
    """Folders of finished runs with one damaged file: `report`, `export`, `config show`, `resume`."""

    name = "run folders"

    def _prepare(self) -> None:
        self.run = self.folder / "run"
        with contextlib.suppress(SystemExit):  # by which most verbs end
            main(["train", "toybox-smoke", f"run.dir={self.run}", "train.iterations=1"])
        assert (self.run / "summary.json").is_file()
        paths = [path for path in self.run.rglob("*") if path.is_file() and path.suffix != ".html"]
        self.contents = {path: path.read_bytes() for path in sorted(paths)}

    def _make(self, draw: random.Random) -> Callable[[], int]:
        for path, data in self.contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        path = draw.choice(list(self.contents))
        path.unlink()
        if draw.random() < 0.95:
            path.write_bytes(_mutate_file(draw, path, self.contents[path]))
        verbs = (
            ["report", str(self.run)],
            ["config", "show", str(self.run / "config.yaml")],
            ["export", str(self.run), str(self.folder / "exported")],
        )
        shutil.rmtree(self.folder / "exported", ignore_errors=True)
        return self.command(*draw.choice(verbs))


class Comparisons(Target):
    """Results of a comparison on another machine: `cgrpo compare --report-only --also`."""

    name = "comparison results"

    def _prepare(self) -> None:
        from customized_grpo.comparison.arms import Arm
        from customized_grpo.comparison.plan import make_plan

        naive = Arm(name="naive", label="Naive", role="front", overrides={"advantage.name": "linear"})
        method = Arm(
            name="both", label="Both", role="method", control="naive", overrides={"advantage.gamma": 0.4}
        )
        self.plan = make_plan(
            "toybox-smoke", [], (naive, method), (0, 1), folder=self.folder / "out", threads=1
        )
        scores = {"judge/identity": [0.5, 0.4, 0.6], "judge/prompt": [0.25, None, 0.75]}
        line = {"iteration": 1.0, "rollouts": 8.0, **dict.fromkeys(scores, 0.5)}
        common = {"state": "finished", "rollouts": 8, "wall_s": 1.0, "evals": [line], "train": [line]}
        common |= {"alarms": [], "degraded": False, "subjects": ["a", "b", "c"]}
        runs = []
        for arm, seed in (("naive", 0), ("naive", 1), ("both", 0)):
            runs.append({"arm": arm, "seed": seed, **common, "before": scores, "after": scores})
        self.results = {"format": 1, **self.plan.to_json(), "versions": {"python": "3.11"}, "runs": runs}

    def _make(self, draw: random.Random) -> Callable[[], int]:
        from customized_grpo.comparison.run import run_comparison

        data = dump_json(mutate_tree(draw, copy.deepcopy(self.results)))
        if draw.random() < 0.1:
            data = mutate_bytes(draw, data)
        file = Path(self.write("results.json", data))
        shutil.rmtree(self.plan.folder, ignore_errors=True)
        return lambda: run_comparison(self.plan, jobs=1, examine=False, train=False, also=[file])


TARGETS: tuple[type[Target], ...] = (
    Recipes,
    Overrides,
    Manifests,
    Images,
    Adapters,
    ModelFolders,
    RunFolders,
    Comparisons,
)


def _disk() -> Image.Image:
    """Return a mask of a subject in the middle."""
    mask = Image.new("L", (32, 32), 0)
    ImageDraw.Draw(mask).ellipse((8, 8, 24, 24), fill=255)
    return mask


def _saved(image: Image.Image, modes: Sequence[str], formats: Sequence[str]) -> list[bytes]:
    """Return an image's files in these modes and formats, as far as they go together."""
    files = []
    for mode in modes:
        for format in formats:
            file = io.BytesIO()
            try:
                image.convert(mode).save(file, format)
            except (OSError, ValueError, KeyError):
                continue
            files.append(file.getvalue())
    return files


def _mutate_file(draw: random.Random, path: Path, data: bytes) -> bytes:
    """Return a file's changed content, changed in the manner of its format."""
    if path.suffix == ".safetensors":
        return mutate_safetensors(draw, data)
    if draw.random() < 0.7:
        if path.suffix == ".json":
            return dump_json(mutate_tree(draw, json.loads(data)))
        if path.suffix == ".jsonl":
            lines = [json.loads(line) for line in data.splitlines()]
            return b"\n".join(dump_json(line) for line in _some_changed(draw, lines))
    return mutate_bytes(draw, data)


def _some_changed(draw: random.Random, lines: Sequence[Any]) -> list[Any]:
    index = draw.randrange(len(lines))
    return [mutate_tree(draw, line) if i == index else line for i, line in enumerate(lines)]


def _dotted_settings(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return the dotted paths of all settings with their values, sections included."""
    settings: list[tuple[str, Any]] = []
    for key, value in tree.items():
        settings.append((prefix + key, value))
        if isinstance(value, dict):
            settings += _dotted_settings(value, f"{prefix}{key}.")
    return settings
