from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

import tiny_rewards as tiny
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards import build_reward
from customized_grpo.rewards.convert_hpsv2 import convert, main, to_clip
from customized_grpo.rewards.hpsv2 import Hpsv2Reward
from customized_grpo.rewards.preprocessing import CLIP_MEAN, CLIP_STD

HEADS = 2


class Block(nn.Module):
    """Pre-norm attention and MLP, with the names that open_clip gives their weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, HEADS, batch_first=True)
        layers = OrderedDict(
            c_fc=nn.Linear(width, 3 * width), gelu=nn.GELU(), c_proj=nn.Linear(3 * width, width)
        )
        self.mlp = nn.Sequential(layers)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Visual(nn.Module):
    def __init__(self, width: int, layers: int, size: int, patch: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width))
        self.positional_embedding = nn.Parameter(torch.randn((size // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = Transformer(width, layers)
        self.proj = nn.Parameter(torch.randn(width, dim))

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class OpenClip(nn.Module):
    """CLIP from its definition (arXiv 2103.00020), independent of transformers; two widths."""

    def __init__(self, vocabulary: int, *, context: int = 16, dim: int = 24) -> None:
        super().__init__()
        self.visual = Visual(32, 3, 64, 16, dim)
        self.transformer = Transformer(20, 2)
        self.token_embedding = nn.Embedding(vocabulary, 20)
        self.positional_embedding = nn.Parameter(torch.randn(context, 20))
        self.ln_final = nn.LayerNorm(20)
        self.text_projection = nn.Parameter(torch.randn(20, dim))
        self.logit_scale = nn.Parameter(torch.tensor(4.6))

    def encode_text(self, ids: Tensor) -> Tensor:
        length = ids.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1)
        x = self.transformer(self.token_embedding(ids) + self.positional_embedding[:length], mask)
        return self.ln_final(x)[torch.arange(len(ids)), ids.argmax(1)] @ self.text_projection


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from customized_grpo.toybox.tokenizers import clip_tokenizer

    return clip_tokenizer()


@pytest.fixture(scope="module")
def original(tokenizer: Any) -> OpenClip:
    def build() -> OpenClip:
        model = OpenClip(len(tokenizer))
        for weight in model.parameters():  # norms and biases too must be in their places
            nn.init.normal_(weight, std=0.4)
        return model

    return tiny.seeded(build)


@pytest.fixture(scope="module")
def folder(original: OpenClip, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command makes of the checkpoint and a tokenizer."""
    base = tmp_path_factory.mktemp("hpsv2")
    tokenizer.save_pretrained(base / "tokenizer")
    torch.save({"epoch": 1, "state_dict": original.state_dict()}, base / "tiny.pt")
    convert(base / "tiny.pt", base / "converted", str(base / "tokenizer"), HEADS)
    return base / "converted"


def letterboxed(image: Tensor, size: int = 64) -> Tensor:
    """Fit an image into a black square with Pillow alone, and normalise it as CLIP does."""
    image = Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())
    scale = size / max(image.size)
    small = image.resize([round(edge * scale) for edge in image.size], Image.Resampling.BICUBIC)
    square = Image.new("RGB", (size, size))
    square.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255
    return (pixels - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


def test_a_converted_model_computes_the_same_features(
    original: OpenClip, tokenizer: Any, folder: Path
) -> None:
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    ids = tokenizer(
        ["a fox with a red hat", "a robot", "two birds"], padding=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        images, texts = original.visual(pixels), original.encode_text(ids)
        mine = (
            model.get_image_features(pixel_values=pixels).pooler_output,
            model.get_text_features(input_ids=ids).pooler_output,
        )
    assert (mine[0] - images).abs().max() < 2e-6 * images.abs().max()
    assert (mine[1] - texts).abs().max() < 2e-6 * texts.abs().max()
    assert torch.equal(model.logit_scale, original.logit_scale)


@pytest.mark.parametrize("size", [(64, 64), (96, 60), (50, 130)])
def test_a_score_is_the_cosine_of_a_letterboxed_image_and_its_prompt(
    original: OpenClip, tokenizer: Any, folder: Path, size: tuple[int, int]
) -> None:
    batch = tiny.make_batch(3, *size)
    scores = Hpsv2Reward.load(str(folder)).score(batch)
    ids = tokenizer(batch.prompts, padding=True, return_tensors="pt").input_ids
    with torch.no_grad():
        images = original.visual(torch.stack([letterboxed(image) for image in batch.images]))
        expected = functional.cosine_similarity(images, original.encode_text(ids))
    assert torch.allclose(scores, expected, atol=1e-5)
    assert scores.std() > 1e-3


def test_half_precision_is_converted_to_fp32(original: OpenClip) -> None:
    half = {name: tensor.half() for name, tensor in original.state_dict().items()}
    assert {tensor.dtype for tensor in to_clip(half, HEADS).state_dict().values()} <= {
        torch.float32,
        torch.int64,
    }


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda state: state.pop("ln_final.bias"), "missing.*final_layer_norm.bias"),
        (lambda state: state.pop("token_embedding.weight"), "token_embedding"),
        (lambda state: state.update({"visual.extra": torch.zeros(1)}), "unknown.*visual.extra"),
        (lambda state: state.update({"ln_final.bias": torch.zeros(3)}), "size mismatch"),
    ],
)
def test_weights_that_do_not_fit_are_named(original: OpenClip, change: Any, text: str) -> None:
    state = dict(original.state_dict())
    change(state)
    with pytest.raises(UserError, match=text):
        to_clip(state, HEADS)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("harm"),))


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda file: None, "no such file"),
        (lambda file: file.write_bytes(b"nonsense"), "cannot be read as tensors alone"),
        (lambda file: torch.save({"state_dict": Harmful()}, file), "cannot be read as tensors alone"),
        (lambda file: torch.save({"weights": {}}, file), "no state_dict"),
    ],
)
def test_the_command_refuses_what_is_no_checkpoint(
    tokenizer: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    write: Any,
    text: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    write(tmp_path / "in.pt")
    assert main(["in.pt", "out", "--tokenizer", "./tokenizer"]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "harm").exists()


def test_the_command_overwrites_nothing_and_refuses_another_tokenizer(
    original: OpenClip, folder: Path, tmp_path: Path
) -> None:
    tokenizer = folder.parent / "tokenizer"
    with pytest.raises(UserError, match="not an empty folder"):
        convert(folder.parent / "tiny.pt", folder, str(tokenizer), HEADS)
    smaller = {**original.state_dict(), "token_embedding.weight": torch.zeros(100, 20)}
    torch.save({"state_dict": smaller}, tmp_path / "smaller.pt")
    with pytest.raises(UserError, match="needs 100"):
        convert(tmp_path / "smaller.pt", tmp_path / "out", str(tokenizer), HEADS)


def test_without_a_path_the_conversion_is_explained() -> None:
    with pytest.raises(UserError, match="needs the path") as caught:
        build_reward(RewardConfig(name="hpsv2"))
    assert "python -m customized_grpo.rewards.convert_hpsv2" in str(caught.value)
