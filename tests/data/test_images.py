"""The promises of the only place that opens an image."""

from __future__ import annotations

import functools
import io
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from customized_grpo.data.images import (
    decode_image,
    image_size,
    open_alpha,
    open_image,
    open_mask,
    to_tensor,
)
from customized_grpo.errors import UserError


def gradient(width: int = 12, height: int = 8) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), 0 * x + 90], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def png(width: int, height: int, scanlines: bytes, bit_depth: int = 8, colour_type: int = 2) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", scanlines) + chunk(b"IEND", b"")


def refused(path: Path, reason: str, **limits: int) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        open_image(path, **limits)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("form", ["png", "bmp", "tiff", "webp"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, form: str) -> None:
    gradient().save(tmp_path / f"a.{form}", **({"lossless": True} if form == "webp" else {}))
    image = open_image(tmp_path / f"a.{form}")
    assert image.mode == "RGB" and np.array_equal(image, gradient())


def test_the_ending_of_the_name_does_not_matter(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.jpg", format="PNG")
    assert np.array_equal(open_image(tmp_path / "a.jpg"), gradient())


def test_cmyk_becomes_rgb_with_about_the_same_colours(tmp_path: Path) -> None:
    gradient(64, 64).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    image = open_image(tmp_path / "a.jpg")
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image, int) - np.asarray(gradient(64, 64), int)).mean() < 5


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    values = np.array([[0, 128, 257 * 100, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tiff"):
        Image.fromarray(values).save(tmp_path / name)
        pixels = np.asarray(open_image(tmp_path / name))
        assert pixels[0].tolist() == [[0] * 3, [0] * 3, [100] * 3, [255] * 3]


def test_sixteen_bit_colour_is_scaled(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">6H", 65535, 0, 257 * 7, 0, 65535, 257 * 200)
    (tmp_path / "a.png").write_bytes(png(2, 1, zlib.compress(row), bit_depth=16))
    assert np.asarray(open_image(tmp_path / "a.png"))[0].tolist() == [[255, 0, 7], [0, 255, 200]]


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (3, 1))
    rgba.putpixel((0, 0), (0, 0, 0, 0))
    rgba.putpixel((1, 0), (200, 0, 0, 255))
    rgba.putpixel((2, 0), (0, 0, 0, 128))
    rgba.save(tmp_path / "a.png")
    assert np.asarray(open_image(tmp_path / "a.png"))[0].tolist() == [[255] * 3, [200, 0, 0], [127] * 3]
    rgba.convert("LA").save(tmp_path / "b.png")
    assert np.asarray(open_image(tmp_path / "b.png"))[0, 0].tolist() == [255] * 3


def test_a_palette_with_alpha_is_composited_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    image.save(tmp_path / "a.png", transparency=bytes([255, 0, 255]))
    assert np.asarray(open_image(tmp_path / "a.png"))[0].tolist() == [[10, 20, 30], [255] * 3, [0, 0, 255]]


def test_a_transparent_colour_of_an_rgb_file_is_white(tmp_path: Path) -> None:
    image = gradient(4, 1)
    image.save(tmp_path / "a.png", transparency=image.getpixel((1, 0)))
    pixels = np.asarray(open_image(tmp_path / "a.png"))
    assert pixels[0, 1].tolist() == [255] * 3 and pixels[0, 2].tolist() == list(image.getpixel((2, 0)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = gradient(6, 4)
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow transposes that make the stored pixels
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for form in ("png", "webp", "tiff"):
        stored.save(tmp_path / f"a.{form}", exif=exif, lossless=True)
        assert np.array_equal(open_image(tmp_path / f"a.{form}"), upright)
        assert image_size(tmp_path / f"a.{form}") == upright.size


@pytest.mark.parametrize("form", ["gif", "png", "webp"])
def test_an_animation_gives_its_first_frame(tmp_path: Path, form: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / f"a.{form}", save_all=True, append_images=frames[1:], lossless=True)
    pixels = np.asarray(open_image(tmp_path / f"a.{form}"))
    assert pixels[..., 0].min() == 255 and pixels[..., 1:].max() == 0


def test_one_pixel_and_one_bit_images_open(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), "red").save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").size == (1, 1)
    Image.new("1", (1, 1), 1).save(tmp_path / "b.png")
    assert open_image(tmp_path / "b.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's remarks on damaged metadata
def test_every_truncation_is_refused_or_decodes_and_names_the_file(tmp_path: Path) -> None:
    for form in ("png", "jpeg", "gif", "bmp", "tiff", "webp"):
        path = tmp_path / f"a.{form}"
        gradient(40, 30).save(path)
        data = path.read_bytes()
        for length in range(1, len(data) * 2 // 3, max(1, len(data) // 40)):
            path.write_bytes(data[:length])
            refused(path, "cannot be decoded|is not an image")


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=150)
@given(form=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]), data=st.data())
def test_a_corrupted_image_opens_or_is_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    buffer = io.BytesIO()
    gradient(9, 7).save(buffer, format=form)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "corrupted"
    path.write_bytes(content)
    try:
        assert open_image(path).mode == "RGB"
    except UserError as error:
        assert str(path) in error.message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"hello", "is not an image"),
        (b"\x89PNG\r\n\x1a\n", "is not an image|cannot be decoded"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'\xef\xbb\xbf\n<?xml version="1.0"?><svg/>', "XML"),
        (b"<!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is not an image"),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.png").write_bytes(content)
    refused(tmp_path / "a.png", reason)


def test_missing_files_folders_and_pipes_are_refused_at_once(tmp_path: Path) -> None:
    refused(tmp_path / "missing.png", "No such file")
    refused(tmp_path, "directory")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "not a regular file")
    refused(Path("/dev/zero"), "not a regular file")


def test_too_many_bytes_are_refused_before_reading(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    size = (tmp_path / "a.png").stat().st_size
    refused(tmp_path / "a.png", f"has {size} bytes; the limit is {size - 1}", max_bytes=size - 1)
    assert open_image(tmp_path / "a.png", max_bytes=size).size == (12, 8)


def test_huge_dimensions_are_refused_on_the_header(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(50_000, 50_000, b""))
    refused(tmp_path / "a.png", "2500000000|50,000 x 50,000")
    (tmp_path / "b.png").write_bytes(png(50_000, 1_001, b""))
    refused(tmp_path / "b.png", "50,000 x 1,001 pixels; the limit is 50,000,000")
    gradient().save(tmp_path / "c.png")
    refused(tmp_path / "c.png", "12 x 8 pixels; the limit is 95", max_pixels=95)


def test_a_long_thin_image_is_welcome(tmp_path: Path) -> None:
    Image.new("RGB", (50_000, 2)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").size == (50_000, 2)


MEASURED = """
import resource, sys
from pathlib import Path
from customized_grpo.data.images import open_image
from customized_grpo.errors import UserError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    outcome = str(open_image(Path(sys.argv[1])).size)
except UserError as error:
    outcome = error.message
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, outcome)
assert "torch" not in sys.modules
"""


def measured(path: Path) -> tuple[int, str]:
    """Open an image in a process of its own; return by how many MB its peak grew, and the outcome."""
    run = subprocess.run([sys.executable, "-c", MEASURED, str(path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    megabytes, outcome = run.stdout.split(" ", 1)
    return int(megabytes), outcome


def test_a_decompression_bomb_is_refused_without_spending_memory(tmp_path: Path) -> None:
    side = 10_000
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes((1 + side * 3) * 100)) for _ in range(side // 100))
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side, packed + packer.flush()))
    assert path.stat().st_size < 300_000  # 286 MB when decoded
    megabytes, message = measured(path)
    assert megabytes < 20
    assert "10,000 x 10,000 pixels" in message


def gif(canvas: int, frame: int) -> bytes:
    header = b"GIF89a" + struct.pack("<HHBBB", canvas, canvas, 0, 0, 0)
    return header + b"," + struct.pack("<HHHHB", 0, 0, frame, frame, 0) + b"\x02\x02\x44\x01\x00;"


def bmp(side: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def png_with_chunk(kind: bytes, data: bytes) -> bytes:
    plain = png(1, 1, zlib.compress(b"\0\1\2\3"))
    chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return plain[:33] + chunk + plain[33:]  # after IHDR


@functools.cache
def inflated() -> bytes:
    """60 MB of zeros, packed; made by the first test that needs them, not by whoever collects this file."""
    return zlib.compress(bytes(60_000_000), 9)


BOMBS = {
    "canvas.gif": lambda: gif(65_535, 65_535),
    "frame.gif": lambda: gif(4, 65_535),  # the file's header looks harmless, that of its frame does not
    "bomb.bmp": lambda: bmp(60_000),
    "text.png": lambda: png_with_chunk(b"zTXt", b"Comment\0\0" + inflated()),
    "profile.png": lambda: png_with_chunk(b"iCCP", b"icc\0\0" + inflated()),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_of_every_format_are_refused_without_spending_memory(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BOMBS[name]())
    megabytes, message = measured(tmp_path / name)
    assert megabytes < 20
    assert "is too large" in message or "Decompressed data too large" in message


def test_a_tiff_bomb_is_refused_without_spending_memory(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.tiff", compression="group4")
    assert (tmp_path / "bomb.tiff").stat().st_size < 30_000
    megabytes, message = measured(tmp_path / "bomb.tiff")
    assert megabytes < 20 and "too large" in message


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "P"])
def test_the_largest_images_that_open_take_bounded_memory(tmp_path: Path, mode: str) -> None:
    image = Image.new(mode, (7_071, 7_071))
    options = {"transparency": bytes(256)} if mode == "P" else {}
    image.save(tmp_path / "a.png", compress_level=1, **options)
    del image
    megabytes, outcome = measured(tmp_path / "a.png")
    assert outcome == "(7071, 7071)\n"
    assert megabytes < 500


def test_an_image_in_memory_opens_like_its_file(tmp_path: Path) -> None:
    gradient().save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    assert np.array_equal(decode_image(content, Path("cell")), open_image(tmp_path / "a.png"))
    for wrong, reason in ((b"", "cell is empty"), (b"<svg/>", "cell is an SVG"), (content[:60], "cell")):
        with pytest.raises(UserError, match=reason):
            decode_image(wrong, Path("cell"))
    with pytest.raises(UserError, match="12 x 8 pixels; the limit is 95"):
        decode_image(content, Path("cell"), max_pixels=95)


def test_alpha_is_a_mask_only_if_something_is_transparent(tmp_path: Path) -> None:
    half = half_mask("RGBA", (9, 9, 9, 255), (9, 9, 9, 0))
    half.save(tmp_path / "a.png")
    assert np.asarray(open_alpha(tmp_path / "a.png")).tolist() == [[255, 255, 0, 0]] * 2
    for name, opaque in (("b.png", Image.new("RGBA", (2, 2), "red")), ("c.png", Image.new("RGB", (2, 2)))):
        opaque.save(tmp_path / name)
        assert open_alpha(tmp_path / name) is None


def test_large_images_are_converted_without_seams(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2_300, 2_000, 4), np.uint8)  # two bands
    Image.fromarray(pixels).save(tmp_path / "a.png", compress_level=1)
    white = Image.new("RGBA", (2_000, 2_300), "white")
    expected = Image.alpha_composite(white, Image.fromarray(pixels)).convert("RGB")
    assert np.array_equal(open_image(tmp_path / "a.png"), expected)


def test_thirty_two_bit_images_are_refused_because_white_is_undefined(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "a.tiff")
    refused(tmp_path / "a.tiff", "32 bits per pixel")


def half_mask(mode: str, white: object, black: object) -> Image.Image:
    mask = Image.new(mode, (4, 2), black)  # type: ignore[arg-type]
    mask.paste(white, (0, 0, 2, 2))  # type: ignore[arg-type]
    return mask


@pytest.mark.parametrize(
    "mask",
    [
        half_mask("L", 255, 0),
        half_mask("1", 1, 0),
        half_mask("RGB", "white", "black"),
        half_mask("I;16", 65535, 0),
        half_mask("RGBA", (9, 9, 9, 255), (9, 9, 9, 0)),
        half_mask("RGBA", (255, 255, 255, 255), (0, 0, 0, 255)),
    ],
    ids=lambda mask: mask.mode,
)
def test_masks_of_every_kind_read_the_same(tmp_path: Path, mask: Image.Image) -> None:
    mask.save(tmp_path / "m.png")
    read = open_mask(tmp_path / "m.png")
    assert read.mode == "L"
    assert np.asarray(read).tolist() == [[255, 255, 0, 0]] * 2


@pytest.mark.parametrize("value", [0, 1, 127])
def test_a_mask_that_marks_nothing_is_refused(tmp_path: Path, value: int) -> None:
    half_mask("L", value, 0).save(tmp_path / "m.png")
    with pytest.raises(UserError, match=f"m.png: the mask marks no pixel .* {value} of 255"):
        open_mask(tmp_path / "m.png")


def test_to_tensor_is_the_pixel_over_255_channels_first() -> None:
    image = gradient(5, 3)
    tensor = to_tensor(image)
    assert tensor.dtype == torch.float32 and tensor.shape == (3, 3, 5) and tensor.is_contiguous()
    for x, y in ((0, 0), (4, 2), (1, 2)):
        assert tensor[:, y, x].tolist() == [pytest.approx(v / 255) for v in image.getpixel((x, y))]
    assert to_tensor(Image.new("L", (5, 3), 255)).equal(torch.ones(1, 3, 5))
    with pytest.raises(ValueError, match="RGBA"):
        to_tensor(Image.new("RGBA", (1, 1)))
