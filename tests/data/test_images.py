"""Opening one image: color modes, bit depths, transparency, orientation, crops."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_files import encoded
from PIL import Image, TiffImagePlugin

from minflextok.data import open_image, to_float, to_uint8
from minflextok.data.images import RandomCrop


def test_photos_are_turned_upright_and_16_bits_are_scaled(tmp_path):
    sideways = Image.new("RGB", (8, 4))
    exif = sideways.getexif()
    exif[0x0112] = 6
    sideways.save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg", None).shape == (3, 8, 4)
    Image.fromarray(np.arange(0, 65280, 1020, dtype=np.uint16).reshape(8, 8)).save(
        tmp_path / "b.png"
    )
    assert len(np.unique(open_image(tmp_path / "b.png", None))) > 60


def test_open_image_crops_the_center():
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 255
    file = encoded(Image.fromarray(wide))
    assert open_image(file, 10).min() == 255
    assert open_image(file, None).shape == (3, 10, 30)


def test_uint8_round_trip():
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_float(x)), x)


# ---- transparency --------------------------------------------------------------------------------


def disc(mode: str, hidden: int) -> Image.Image:
    """A black square on a transparent ground, whose hidden color is `hidden`."""
    alpha = Image.new("L", (8, 8), 0)
    alpha.paste(255, (2, 2, 6, 6))
    gray = Image.new("L", (8, 8), hidden)
    gray.paste(0, (2, 2, 6, 6))
    if mode == "P":
        gray = gray.convert("P")
        gray.info["transparency"] = gray.getpixel((0, 0))
        return gray
    return Image.merge(mode, (gray,) * (len(mode) - 1) + (alpha,))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.parametrize("hidden", [10, 90, 255])
def test_transparent_pixels_are_white_whatever_their_hidden_color(mode, hidden):
    image = disc(mode, hidden)
    options = {"transparency": image.info["transparency"]} if mode == "P" else {}
    shown = open_image(encoded(image, **options), None)
    want = np.full((3, 8, 8), 255)
    want[:, 2:6, 2:6] = 0
    assert np.array_equal(shown, want)


def test_half_transparent_pixels_are_blended_and_opaque_ones_unchanged():
    assert open_image(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 128))), None).max() in (126, 127)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    opaque = Image.fromarray(pixels).convert("RGBA")
    assert np.array_equal(open_image(encoded(opaque), None), pixels.transpose(2, 0, 1))
    keyed = Image.new("RGB", (4, 4), (1, 2, 3))
    assert open_image(encoded(keyed, transparency=(1, 2, 3)), None).min() == 255


# ---- orientation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tag", range(1, 9))
def test_every_orientation_is_turned_upright(tag):
    """The stored pixels are those of an upright image, moved as the tag says."""
    upright = np.zeros((4, 8), np.uint8)
    upright[:2, :3] = 255  # a mark in the corner: all eight turns differ
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(np.transpose(a), 2),
        8: lambda a: np.rot90(a, -1),
    }
    exif = Image.Exif()
    exif[0x0112] = tag
    for kind in ("PNG", "WEBP"):
        stored = Image.fromarray(np.ascontiguousarray(undo[tag](upright))).convert("RGB")
        file = encoded(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        assert np.array_equal(open_image(file, None)[0], upright), kind


def exif_block(*entries: tuple[int, int, int, bytes]) -> bytes:
    """An EXIF block by hand: (tag, type, count, 4 bytes of value or offset) each."""
    body = b"".join(struct.pack("<HHI", *e[:3]) + e[3] for e in entries)
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    return b"Exif\0\0" + head + body + struct.pack("<I", 0)


MALFORMED = {
    "text as orientation": exif_block((0x0112, 2, 4, b"six\0")),
    "an orientation of 77": exif_block((0x0112, 3, 1, struct.pack("<HH", 77, 0))),
    "an orientation without a value": exif_block((0x0112, 3, 0, b"\0\0\0\0")),
    "a rational with denominator 0": exif_block((0x011A, 5, 1, struct.pack("<I", 8)))
    + struct.pack("<II", 1, 0),
    "text in a resolution": exif_block((0x0128, 3, 1, b"\2\0\0\0"), (0x011A, 2, 4, b"7dp\0")),
    "one letter in a resolution": exif_block(
        (0x0128, 3, 1, b"\2\0\0\0"), (0x011A, 2, 2, b"7\0\0\0")
    ),
    "an offset beyond the end": exif_block((0x0112, 3, 99, struct.pack("<I", 10**6))),
    "a type that does not exist": exif_block((0x0112, 99, 1, b"\0\0\0\0")),
    "cut": b"Exif\0\0II*\0",
    "empty": b"",
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_exif_block_counts_as_none(kind):
    plain = Image.new("RGB", (8, 4), (200, 30, 30))
    file = encoded(plain, "JPEG")
    broken = encoded(plain, "JPEG", exif=MALFORMED[kind])
    assert np.array_equal(open_image(broken, None), open_image(file, None))


# ---- grays of more than 8 bits -------------------------------------------------------------------

RAMP = np.arange(64).reshape(8, 8) / 63  # 0 to 1
WANT = (255 * RAMP).round()


def tiff(values: np.ndarray, mode: str | None = None, **tags) -> bytes:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info[int(tag[1:])] = value
    return encoded(Image.fromarray(values), "TIFF", tiffinfo=info)


@pytest.mark.parametrize(
    "file",
    [
        encoded(Image.fromarray((65535 * RAMP).round().astype(np.uint16))),
        tiff((65535 * RAMP).round().astype(np.uint16)),
        tiff((65535 * RAMP).round().astype(np.int32)),
        tiff((255 * RAMP).round().astype(np.int32)),
        tiff(RAMP.astype(np.float32)),
        tiff((255 * RAMP).astype(np.float32)),
        tiff((4095 * RAMP).round().astype(np.uint16), t281=4095),
    ],
    ids=["16-bit PNG", "16-bit", "16 in 32", "8 in 32", "0..1", "0..255", "12-bit, said so"],
)
def test_grays_of_a_known_range_are_scaled(file):
    shown = open_image(file, None)
    assert shown.shape == (3, 8, 8) and np.abs(shown[0] - WANT).max() <= 1


@pytest.mark.parametrize(
    "values",
    [
        (4095 * RAMP).astype(np.uint16),
        (1023 * RAMP).astype(np.uint16),
        (10**6 * RAMP).astype(np.int32),
        (RAMP - 0.5).astype(np.float32),
        (1000 * RAMP).astype(np.float32),
        np.where(RAMP > 0.5, np.nan, RAMP).astype(np.float32),
    ],
)
def test_grays_of_an_unknown_range_are_refused(values):
    with pytest.raises(ValueError, match="is unknown; scale them to"):
        open_image(tiff(values), None)


# ---- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 65_000), (65_000, 1), (2, 9_999)])
def test_a_thin_image_needs_little_memory(shape):
    """Resized as a whole, 65,000x1 at size 256 would take 13 GB."""
    assert open_image(encoded(Image.new("L", shape, 77)), 256).shape == (3, 256, 256)


def test_long_images_are_cropped_first_with_the_same_pixels():
    gray = np.random.default_rng(0).integers(80, 176, (6, 6 * 17), dtype=np.uint8)
    whole = Image.fromarray(gray).convert("RGB").resize((17 * 8, 8), Image.Resampling.BICUBIC)
    want = np.asarray(whole.crop((64, 0, 72, 8))).transpose(2, 0, 1)
    shown = open_image(encoded(Image.fromarray(gray)), 8)
    assert np.abs(shown.astype(int) - want).max() <= 1


@pytest.mark.parametrize(
    "file", [b"", b"no image", b"\xff\xd8nothing", encoded(Image.new("L", (9, 9)))[:40]]
)
def test_broken_files_are_value_or_os_errors(file):
    with pytest.raises((OSError, ValueError)):
        open_image(file, None)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    file = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(file, None)[:, 0, 0].tolist() == [255, 0, 0]


# ---- random crops --------------------------------------------------------------------------------


@given(
    scale=st.floats(0.01, 1),
    draws=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 4),
    width=st.integers(1, 600),
    height=st.integers(1, 600),
)
def test_a_random_crop_lies_in_the_image_and_is_large_enough(scale, draws, width, height):
    left, top, right, bottom = RandomCrop(scale, *draws).box(width, height)
    assert 0 <= left < right <= width * (1 + 1e-9) and 0 <= top < bottom <= height * (1 + 1e-9)
    if width == height:  # a side that does not fit loses at most a quarter of the area
        assert (right - left) * (bottom - top) >= scale * width * height * 0.74


def test_random_crops_have_the_area_and_aspect_asked_for():
    rng = np.random.default_rng(0)
    boxes = np.array([RandomCrop(0.2, *rng.random(4)).box(300, 200) for _ in range(2000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    free = h < 200  # the others did not fit
    assert (w / h)[free].min() >= 0.749 and (w / h)[free].max() <= 1.334
    assert (w * h)[free].min() >= 0.2 * 60_000 - 1e-6
    assert abs((boxes[:, 0] + boxes[:, 2]).mean() / 2 - 150) < 5  # anywhere, symmetrically


def test_a_random_crop_shows_its_part_of_the_image():
    """A ramp: the mean of a crop is the value at the middle of its box."""
    ramp = np.tile(np.linspace(0, 255, 256, dtype=np.uint8), (256, 1))
    crop = RandomCrop(0.1, 0.0, 0.5, 0.25, 0.75)
    left, _, right, _ = crop.box(256, 256)
    shown = open_image(encoded(Image.fromarray(ramp)), 32, crop)
    assert shown.shape == (3, 32, 32) and abs(shown.mean() - (left + right) / 2) < 1
