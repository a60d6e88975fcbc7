"""The doors of the package: for each kind of input a valid one, its changes, and the command that takes it."""

from __future__ import annotations

import copy
import io
import json
import random
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

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

COPIES = 4  # of a run folder or a model folder that a target changes in turn


class Target(ABC):
    """A kind of input.

    Args:
        folder: Where it may write; the input of the present call stays there, so that a failure can be kept.
    """

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.prepare()

    @abstractmethod
    def prepare(self) -> None:
        """Write what all inputs of this kind are made from."""

    @abstractmethod
    def make(self, draw: random.Random) -> Callable[[], int]:
        """Write one input; return the call that takes it and returns an exit status."""

    def command(self, *arguments: str) -> Callable[[], int]:
        """Return a call of the command line in this process."""
        return lambda: main(arguments)


class Recipes(Target):
    """Recipe files: `cgrpo config show`."""

    name = "recipes"

    def prepare(self) -> None:
        presets = resources.files("customized_grpo.config") / "presets"
        self.texts = [(presets / f"{name}.yaml").read_text() for name in preset_names()]

    def make(self, draw: random.Random) -> Callable[[], int]:
        text = draw.choice(self.texts)
        if draw.random() < 0.5:
            tree = mutate_tree(draw, yaml.safe_load(text))
            data = dump_json(tree)  # JSON is YAML as well, and keeps what YAML would escape
        else:
            data = mutate_text(draw, text).encode("utf-8", errors="surrogatepass")
        if draw.random() < 0.1:
            data = mutate_bytes(draw, data)
        path = self.folder / "recipe.yaml"
        path.write_bytes(data)
        return self.command("config", "show", str(path))


class Overrides(Target):
    """Settings on the command line: `cgrpo config show PRESET KEY=VALUE ...`."""

    name = "overrides"

    def prepare(self) -> None:
        self.keys = sorted(_dotted_keys(load_config("toybox").model_dump(mode="json")))

    def make(self, draw: random.Random) -> Callable[[], int]:
        arguments = []
        for _ in range(draw.randint(1, 3)):
            value = draw.choice(ODD_VALUES)
            text = value if isinstance(value, str) else json.dumps(value)
            key = draw.choice(self.keys)
            if draw.random() < 0.2:
                key = mutate_text(draw, key)
            argument = f"{key}={text}"
            arguments.append(mutate_text(draw, argument) if draw.random() < 0.2 else argument)
        # A command line holds no zero byte: the system ends an argument there.
        arguments = [argument.replace("\x00", "") for argument in arguments]
        (self.folder / "arguments.json").write_bytes(dump_json(arguments))
        return self.command("config", "show", draw.choice(("toybox", "flux1-uno")), "--", *arguments)


class Manifests(Target):
    """Lists of rows: `cgrpo data check`."""

    name = "manifests"

    def prepare(self) -> None:
        for name in ("a", "b"):
            Image.new("RGB", (32, 32), "red").save(self.folder / f"{name}.png")
        Image.new("L", (32, 32), 255).save(self.folder / "mask.png")
        row = {"prompt": "a toy", "subject": "a", "class": "toy", "references": ["a.png"], "masks": ["mask.png"]}
        self.rows = [{**row, "target": "b.png"}, {**row, "subject": "b", "references": ["b.png", "a.png"]}]
        self.rows[1]["masks"] = ["mask.png", "mask.png"]

    def make(self, draw: random.Random) -> Callable[[], int]:
        rows = [mutate_tree(draw, row) for row in copy.deepcopy(self.rows)]
        data = b"\n".join(dump_json(row) for row in rows)
        if draw.random() < 0.3:
            data = mutate_bytes(draw, data)
        path = self.folder / "manifest.jsonl"
        path.write_bytes(data)
        return self.command("data", "check", str(path))


class Images(Target):
    """Reference images and masks: `cgrpo data check` of a list with them."""

    name = "images"
    FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "ICO", "PPM")

    def prepare(self) -> None:
        image = Image.radial_gradient("L").resize((48, 40))
        self.images = []
        for mode in ("RGB", "RGBA", "L", "P", "I;16", "CMYK"):
            for format in self.FORMATS:
                file = io.BytesIO()
                try:
                    image.convert(mode).save(file, format)
                except (OSError, ValueError):
                    continue  # not every format has every mode
                self.images.append(file.getvalue())
        self.mask = self.images[0]

    def make(self, draw: random.Random) -> Callable[[], int]:
        reference = mutate_bytes(draw, draw.choice(self.images))
        mask = mutate_bytes(draw, draw.choice(self.images)) if draw.random() < 0.5 else self.mask
        (self.folder / "reference.png").write_bytes(reference)
        (self.folder / "mask.png").write_bytes(mask)
        row = {"prompt": "a toy", "subject": "a", "references": ["reference.png"], "masks": ["mask.png"]}
        path = self.folder / "manifest.jsonl"
        path.write_text(json.dumps(row))
        return self.command("data", "check", str(path))


class Adapters(Target):
    """LoRA files: read for `generate --lora`, and made part of the base."""

    name = "adapters"

    def prepare(self) -> None:
        from customized_grpo.policies.loading import load_pipeline, load_policy

        config = load_config("toybox-smoke")
        self.policy = load_policy(config.model, seed=0)
        self.policy.save_adapter(self.folder / "adapter", {})
        (file,) = (self.folder / "adapter").glob("*.safetensors")
        self.valid = file.read_bytes()
        self.pipe = load_pipeline("toybox", precision="fp32")
        self.weights = copy.deepcopy(self.pipe.transformer.state_dict())

    def make(self, draw: random.Random) -> Callable[[], int]:
        path = self.folder / "lora.safetensors"
        path.write_bytes(mutate_safetensors(draw, self.valid))
        return (lambda: self._load(path)) if draw.random() < 0.5 else (lambda: self._fuse(path))

    def _load(self, path: Path) -> int:
        from customized_grpo.policies import lora

        lora.load_file(self.policy.transformer, path)
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

    def prepare(self) -> None:
        self.base = self.folder / "base"
        shutil.copytree(str(resources.files("customized_grpo.toybox") / "assets" / "base"), self.base)
        paths = [path for path in self.base.rglob("*") if path.is_file()]
        self.contents = {path: path.read_bytes() for path in sorted(paths)}
        self.changed: Path | None = None

    def make(self, draw: random.Random) -> Callable[[], int]:
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

        config = load_config("toybox-smoke", [f"model.path={self.base}"])
        load_policy(config.model, seed=0)
        return 0


class RunFolders(Target):
    """Folders of finished runs with one damaged file: `report`, `export`, `config show`, `resume`."""

    name = "run folders"

    def prepare(self) -> None:
        self.run = self.folder / "run"
        assert main(["train", "toybox-smoke", f"run.dir={self.run}", "train.iterations=1"]) == 0
        paths = [path for path in self.run.rglob("*") if path.is_file() and path.suffix != ".html"]
        self.contents = {path: path.read_bytes() for path in sorted(paths)}

    def make(self, draw: random.Random) -> Callable[[], int]:
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


TARGETS: tuple[type[Target], ...] = (
    Recipes,
    Overrides,
    Manifests,
    Images,
    Adapters,
    ModelFolders,
    RunFolders,
)


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


def _dotted_keys(tree: dict[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted paths of all settings, sections included."""
    keys = []
    for key, value in tree.items():
        keys.append(prefix + key)
        if isinstance(value, dict):
            keys += _dotted_keys(value, f"{prefix}{key}.")
    return keys
