"Pictures from elsewhere: what a viewer shows is what is read, and damage is named."

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from avpapers.core.pictures import PICTURE_SUFFIXES, open_picture, read_picture

RAMP = np.linspace(0, 1, 1024).reshape(32, 32)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("a.png", np.uint16(np.round(RAMP * 65535))),
        ("a.tif", np.uint16(np.round(RAMP * 65535))),
        ("big.tif", np.round(RAMP * 65535).astype(">u2")),
        ("f.tif", RAMP.astype(np.float32)),
        ("wide.pgm", np.int32(np.round(RAMP * 65535))),
    ],
)
def test_more_than_8_bits(name, values, tmp_path):
    if name.endswith(".pgm"):
        content = b"P5 32 32 65535\n" + values.astype(">u2").tobytes()
        (tmp_path / name).write_bytes(content)
    else:
        Image.fromarray(values).save(tmp_path / name)
    found = read_picture(tmp_path / name)
    assert (found - torch.from_numpy(RAMP).float()).abs().max() < 0.6 / 255


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (np.float32(RAMP * 2), "got values 0 to 2, expected 0 to 1"),
        (np.float32(RAMP - 1), "got values -1 to 0"),
        (np.where(RAMP > 0.5, np.float32("nan"), np.float32(0)), "got values nan"),
        (np.int32(RAMP * 65535), "32-bit integers"),
    ],
)
def test_unknown_ranges_are_refused(values, says, tmp_path):
    Image.fromarray(values).save(tmp_path / "odd.tif")
    with pytest.raises(ValueError, match=f"odd.tif: got no readable picture .*{says}"):
        read_picture(tmp_path / "odd.tif")


def test_16_bit_rgb(tmp_path):
    pixels = np.full((4, 4, 3), 0x8040, ">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    (tmp_path / "rgb.png").write_bytes(png(4, 4, 16, 2, [(b"IDAT", zlib.compress(rows))]))
    assert (read_picture(tmp_path / "rgb.png") - 0x8040 / 65535).abs().max() < 1 / 255


def png(width, height, depth, color, chunks):
    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *(chunk(*c) for c in chunks), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# Transparency


def looks(mode, tmp_path, hidden):
    "A dark square on nothing, with a hidden color below."
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[..., :3] = hidden
    pixels[2:6, 2:6] = (40, 40, 40, 255)
    pixels[2, 2, 3] = 128
    picture = Image.fromarray(pixels).convert(mode)
    picture.save(tmp_path / "x.png")
    return read_picture(tmp_path / "x.png")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_hidden_colors_are_not_shown(mode, tmp_path):
    first, second = looks(mode, tmp_path, 0), looks(mode, tmp_path, 250)
    assert torch.equal(first, second) and (first[:, 0, 0] == 1).all()
    assert (first[:, 3, 3] * 255 == 40).all()
    half = (40 * 128 + 255 * 127) / 255 / 255
    assert (first[:, 2, 2] - half).abs().max() < 1.1 / 255


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_gray(depth, tmp_path):
    values = np.array([[0, 3], [200, 3]]) * (257 if depth == 16 else 1)
    rows = b"".join(b"\0" + r.astype(f">u{depth // 8}").tobytes() for r in values)
    clear = struct.pack(">H", 3 * (257 if depth == 16 else 1))
    chunks = [(b"tRNS", clear), (b"IDAT", zlib.compress(rows))]
    (tmp_path / "g.png").write_bytes(png(2, 2, depth, 0, chunks))
    found = 255 * read_picture(tmp_path / "g.png", background="red")
    assert found[0].tolist() == [[0, 255], [200, 255]] and found[1].tolist() == [[0, 0], [200, 0]]


def test_a_transparent_color_of_16_bits_is_refused(tmp_path):
    rows = zlib.compress(b"\0" + struct.pack(">3H", 0x1234, 0, 0))
    chunks = [(b"tRNS", struct.pack(">3H", 0x1234, 0, 0)), (b"IDAT", rows)]
    (tmp_path / "c.png").write_bytes(png(1, 1, 16, 2, chunks))
    with pytest.raises(ValueError, match="c.png: .*transparent color of 16 bits"):
        read_picture(tmp_path / "c.png")


def test_palettes(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 90, 80, 70])
    picture.putdata([0, 1])
    picture.save(tmp_path / "plain.png")
    picture.save(tmp_path / "clear.png", transparency=0)
    picture.save(tmp_path / "clear.gif", transparency=0)
    plain = [[10, 20, 30], [90, 80, 70]]
    assert (255 * read_picture(tmp_path / "plain.png"))[:, 0].T.round().tolist() == plain
    for name in ("clear.png", "clear.gif"):
        found = (255 * read_picture(tmp_path / name))[:, 0].T.round()
        assert found.tolist() == [[255, 255, 255], [90, 80, 70]]


# Everything else


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation, tmp_path):
    pixels = np.zeros((16, 32), np.uint8)
    pixels[:8, :8] = 255  # one corner
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "p.jpg", exif=exif, quality=100)
    found = read_picture(tmp_path / "p.jpg")[0]
    assert found.shape == ((16, 32) if orientation < 5 else (32, 16))
    corners = [float(found[r, c]) > 0.5 for r in (2, -3) for c in (2, -3)]
    assert corners.index(True) == (0, 1, 3, 2, 0, 1, 3, 2)[orientation - 1] and sum(corners) == 1


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "RGB", "YCbCr"])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_plain_modes_are_pillows_own(mode, suffix, tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    picture = Image.fromarray(noise).convert(mode)
    if (suffix, mode) in {(".jpg", "P"), (".png", "CMYK"), (".png", "YCbCr")}:
        pytest.skip("no such files")
    picture.save(tmp_path / f"x{suffix}")
    with Image.open(tmp_path / f"x{suffix}") as stored:
        plain = stored.convert("RGB")
        small = plain.resize((9, 7), Image.Resampling.BICUBIC)
    assert np.array_equal(open_picture(tmp_path / f"x{suffix}"), plain)
    found = read_picture(tmp_path / f"x{suffix}", size=(7, 9))
    assert np.array_equal((255 * found).round().permute(1, 2, 0).byte(), small)
    content = (tmp_path / f"x{suffix}").read_bytes()
    assert np.array_equal(open_picture(content), plain) and suffix in PICTURE_SUFFIXES


def test_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert (255 * read_picture(tmp_path / "a.gif"))[:, 0, 0].tolist() == [255, 0, 0]


def damaged(kind, file):
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    content = file.read_bytes()
    if kind == "cut":
        file.write_bytes(content[: len(content) // 2])
    if kind == "empty":
        file.write_bytes(b"")
    if kind == "page":
        file.write_bytes(b"<html>404</html>")
    if kind == "chunk":
        file.write_bytes(content.replace(b"IDAT", b"ID\0T", 1))
    if kind == "large":
        Image.new("1", (12_000, 12_000)).save(file)
    if kind == "text":
        notes = PngImagePlugin.PngInfo()
        notes.add_text("note", "x" * 2_000_000, zip=True)
        Image.fromarray(noise).save(file, pnginfo=notes)
    if kind == "gone":
        file.unlink()
    if kind == "folder":
        file.unlink()
        file.mkdir()


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "kind", ["cut", "empty", "page", "chunk", "large", "text", "gone", "folder"]
)
def test_damage_is_named(kind, tmp_path):
    damaged(kind, tmp_path / "odd one.png")
    with pytest.raises(ValueError, match="^odd one.png: got no readable picture in"):
        read_picture(tmp_path / "odd one.png")


def test_wrong_requests(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="size: got 0"):
        read_picture(tmp_path / "x.png", size=0)
    with pytest.raises(ValueError, match="unknown color"):
        read_picture(tmp_path / "x.png", background="no color")
