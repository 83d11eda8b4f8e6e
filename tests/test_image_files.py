"""Image files of every kind: what is decoded, and the message for what is not."""

import functools
import io
import os
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from parallelcnn.data.readers.decoding import ImageOptions, decode, look, without_warnings
from parallelcnn.errors import DataError, InputError

Image = pytest.importorskip("PIL.Image")

RED, GRAY = (200, 30, 40), 120
CLOSE = 12  # JPEG and WebP change pixels a little


def picture(mode="RGB", color=RED, size=(8, 6)):
    return Image.new(mode, size, color)


def pixels_of(file, shape=(3, 6, 8), resize="crop"):
    found = decode(file, shape, resize)
    assert (found.dtype, found.shape) == (np.uint8, shape)
    return found


def palette(**info):
    found = picture().quantize(4)
    found.info.update(info)
    return found


def cmyk():
    return picture().convert("CMYK")


def sixteen_bits():
    return Image.fromarray(np.full((6, 8), GRAY * 257, np.uint16))


def half_transparent(mode="RGBA"):
    return picture("RGBA", (*RED, 0)).convert(mode)


def animation():
    return picture(), [picture(color=(0, 0, 255)), picture(color=(0, 255, 0))]


WHITE = (255, 255, 255)
KINDS = {
    "rgb.jpg": (picture, RED),
    "gray.jpg": (lambda: picture("L", GRAY), GRAY),
    "cmyk.jpg": (cmyk, RED),
    "UPPER.JPG": (picture, RED),
    "upper.Jpeg": (picture, RED),
    "rgb.png": (picture, RED),
    "gray.png": (lambda: picture("L", GRAY), GRAY),
    "palette.png": (palette, RED),
    "sixteen bits.png": (sixteen_bits, GRAY),
    "one bit.png": (lambda: picture("1", 1), 255),
    "transparent.png": (half_transparent, WHITE),
    "transparent gray.png": (lambda: half_transparent("LA"), WHITE),
    "opaque.png": (lambda: picture("RGBA", (*RED, 255)), RED),
    "half.png": (lambda: picture("RGBA", (0, 0, 0, 128)), 127),
    "rgb.bmp": (picture, RED),
    "palette.bmp": (palette, RED),
    "palette.gif": (palette, RED),
    "rgb.tiff": (picture, RED),
    "sixteen bits.tif": (sixteen_bits, GRAY),
    "cmyk.tif": (cmyk, RED),
    "ycbcr.tif": (lambda: picture().convert("YCbCr"), RED),
    "lab.tif": (lambda: Image.new("LAB", (8, 6), (150, 128, 128)), 141),
    "rgb.webp": (picture, RED),
    "transparent.webp": (half_transparent, WHITE),
    "rgb.ppm": (picture, RED),
    "gray.pgm": (lambda: picture("L", GRAY), GRAY),
    "sixteen bits.pgm": (sixteen_bits, GRAY),
    "one bit.pbm": (lambda: picture("1", 1), 255),
    "ärger & 空 (1).png": (picture, RED),
    "a\nb.png": (picture, RED),
    "one pixel.png": (lambda: picture(size=(1, 1)), RED),
    "one row.png": (lambda: picture(size=(900, 1)), RED),
}


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_image_is_decoded(name, tmp_path):
    make, color = KINDS[name]
    make().save(tmp_path / name)
    found = pixels_of(tmp_path / name).astype(int)
    wanted = np.reshape(np.broadcast_to(color, 3), (3, 1, 1))
    assert abs(found - wanted).max() <= CLOSE, found[:, 0, 0]
    in_gray = pixels_of(tmp_path / name, (1, 6, 8))
    assert abs(int(in_gray[0, 0, 0]) - np.dot((0.299, 0.587, 0.114), wanted.ravel())) <= CLOSE


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_picture_counts(ending, tmp_path):
    first, others = animation()
    first.save(tmp_path / f"x.{ending}", save_all=True, append_images=others)
    assert abs(pixels_of(tmp_path / f"x.{ending}")[:, 0, 0].astype(int) - RED).max() <= CLOSE


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_the_camera_says(orientation, tmp_path):
    """Values by EXIF 2.32, table 6: which corner of the stored rows and columns is at the top left."""
    wanted = np.arange(48).reshape(6, 8).astype(np.uint8) * 5
    stored = {
        1: wanted,
        2: wanted[:, ::-1],
        3: wanted[::-1, ::-1],
        4: wanted[::-1],
        5: wanted.T,
        6: np.rot90(wanted),
        7: wanted[::-1, ::-1].T,
        8: np.rot90(wanted, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "x.png", exif=exif)
    assert look(tmp_path / "x.png") == (6, 8, True)
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.png", (1, 6, 8))[0], wanted)


def test_the_content_decides_and_not_the_ending(tmp_path):
    picture().save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    assert pixels_of(tmp_path / "x.jpg")[:, 0, 0].tolist() == list(RED)


def test_links_to_images_are_followed(tmp_path):
    picture().save(tmp_path / "x.png")
    (tmp_path / "link.png").symlink_to(tmp_path / "x.png")
    assert pixels_of(tmp_path / "link.png")[:, 0, 0].tolist() == list(RED)


@pytest.mark.parametrize(
    ("resize", "size", "wanted"),
    [
        ("stretch", (2, 2), [[0, 250], [0, 250]]),
        ("crop", (2, 2), [[0, 250], [0, 250]]),
        ("pad", (4, 4), [[0, 0, 0, 0], [0, 0, 250, 250], [0, 0, 250, 250], [0, 0, 0, 0]]),
        ("pad", (8, 4), [[0] * 4] * 3 + [[0, 0, 250, 250]] * 2 + [[0] * 4] * 3),
    ],
)
def test_images_of_another_size_are_brought_to_it(resize, size, wanted, tmp_path):
    """4 x 8: black on the left, light on the right. Nearest to what each way should give, up to the smooth edge."""
    image = np.zeros((4, 8), np.uint8)
    image[:, 4:] = 250
    Image.fromarray(image).save(tmp_path / "x.png")
    found = pixels_of(tmp_path / "x.png", (1, *size), resize)[0].astype(int)
    assert abs(found - np.array(wanted)).max() <= 60, found


def test_cropping_keeps_the_middle(tmp_path):
    image = np.zeros((4, 12), np.uint8)
    image[:, 4:8] = 200
    Image.fromarray(image).save(tmp_path / "x.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "x.png", (1, 4, 4), "crop")[0], 200)


def test_photos_are_decoded_at_a_fraction_of_their_size_without_another_result(tmp_path, rng):
    low = rng.integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(low).resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / "x.jpg", quality=95)
    Image.open(tmp_path / "x.jpg").save(tmp_path / "x.png")
    fast, slow = (pixels_of(tmp_path / name, (3, 60, 80)).astype(int) for name in ("x.jpg", "x.png"))
    assert abs(fast - slow).mean() < 2


# ---- what is no image


def claiming(width, height):
    """A PNG file whose header claims a size that its data do not have."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    data = zlib.compress(b"\0" * 100)
    body = struct.pack(">I", len(data)) + b"IDAT" + data + struct.pack(">I", zlib.crc32(b"IDAT" + data))
    return b"\x89PNG\r\n\x1a\n" + chunk + body + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


def cut(ending, part=0.6):
    def content(folder):
        rng = np.random.default_rng(0)
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), np.uint8)).save(folder / f"whole.{ending}")
        whole = (folder / f"whole.{ending}").read_bytes()
        return whole[: int(part * len(whole))]

    return content


BROKEN = {
    "empty.jpg": (b"", "cannot be decoded: is no image that Pillow can read"),
    "text.png": (b"hello", "cannot be decoded: is no image that Pillow can read"),
    "zeros.gif": (bytes(1000), "cannot be decoded: is no image"),
    "cut.jpg": (cut("jpg"), "cannot be decoded: image file is truncated"),
    "cut.png": (cut("png"), "cannot be decoded"),
    "cut.webp": (cut("webp"), "cannot be decoded"),
    "cut.tif": (cut("tif"), "cannot be decoded"),
    "cut.bmp": (cut("bmp"), "cannot be decoded: image file is truncated"),
    "head.jpg": (cut("jpg", 0.01), "cannot be decoded"),
    "bomb.png": (claiming(60000, 60000), "is too large: an image must have at most 89,478,485 pixels"),
    "large.png": (claiming(12000, 9000), "is too large: an image must have at most"),
    "short.png": (claiming(1000, 1000), "cannot be decoded: image file is truncated"),
    "zero.png": (claiming(0, 0), "cannot be decoded"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_image_is_named(name, tmp_path):
    content, message = BROKEN[name]
    file = tmp_path / name
    file.write_bytes(content(tmp_path) if callable(content) else content)
    with pytest.raises(DataError, match=message) as caught:
        decode(file, (3, 6, 8), "crop")
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


def test_floating_point_images_are_refused_because_their_scale_is_not_known(tmp_path):
    Image.fromarray(np.zeros((6, 8), np.float32)).save(tmp_path / "x.tif")
    with pytest.raises(DataError, match="its pixels are floating-point numbers, which have no known scale"):
        decode(tmp_path / "x.tif", (1, 6, 8), "crop")


def test_a_file_that_is_gone_and_a_folder_are_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        decode(tmp_path / "x.jpg", (1, 6, 8), "crop")
    with pytest.raises(DataError, match=r"cannot be decoded: .*[Dd]irectory"):
        decode(tmp_path, (1, 6, 8), "crop")


def test_where_pillow_is_missing_the_way_to_install_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(DataError, match=r"needs Pillow: pip install 'parallelcnn\[images\]'"):
        look(tmp_path / "x.jpg")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size must be one or two integers from 1 to 4096, rows and columns, got 0"),
        ({"image_size": (3, 4, 5)}, "image_size must be one or two"),
        ({"image_size": (3, 5000)}, "image_size must be one or two"),
        ({"image_size": "64"}, "image_size must be one or two"),
        ({"image_size": True}, "image_size must be one or two"),
        ({"resize": "squash"}, "resize must be one of crop, pad, stretch, got 'squash'"),
        ({"color": "cmyk"}, "color must be one of rgb, gray, got 'cmyk'"),
    ],
)
def test_options_that_do_not_exist_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        ImageOptions(**arguments)


# ---- damaged files of every format


@functools.cache
def whole(ending):
    """A small image file of a format."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, Image.registered_extensions()[f".{ending}"])
    return content.getvalue()


@given(
    ending=st.sampled_from(("jpg", "png", "gif", "bmp", "tif", "webp", "ppm")),
    cut=st.integers(0, 3000),
    changes=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=8),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_holds_it_is_decoded_or_refused(ending, cut, changes, tmp_path):
    content = bytearray(whole(ending)[: max(cut, 1)])
    for place, value in changes:
        content[place % len(content)] = value
    file = tmp_path / f"x.{ending}"
    file.write_bytes(content)
    with without_warnings():
        for read in (lambda: decode(file, (3, 4, 5), "pad").shape, lambda: look(file)):
            try:
                read()
            except DataError as error:
                assert str(error).startswith(f"{file}: ")  # noqa: PT017


def test_a_pipe_in_place_of_an_image_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for read in (look, pixels_of):
        with pytest.raises(
            DataError, match=r"pipe\.png: cannot be decoded: must be a file, not a directory, a pipe or a device"
        ):
            read(tmp_path / "pipe.png")
