"""Every camera encoding reads as the same colours; broken images end in one sentence."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest

from mtl_perception.encodings import (
    SUPPORTED_ENCODINGS,
    EncodingError,
    decode_compressed,
    decode_compressed_depth,
    picture_size,
    to_rgb,
    view_image,
)

HEIGHT, WIDTH = 6, 8
ORANGE = (230, 140, 40)
BAYER = {'rggb': 'RG/GB', 'bggr': 'BG/GR', 'gbrg': 'GB/RG', 'grbg': 'GR/BG'}
GREYS = {'mono8', 'mono16', '8UC1', '16UC1'}
COLOURS = sorted(SUPPORTED_ENCODINGS - {'32FC1', '32FC3'})


def yuv_of(rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return BT.601 Y, U, V with luma 16..235, computed from the standard's definition."""
    r, g, b = (channel / 255 for channel in rgb)
    y = 0.299 * r + 0.587 * g + 0.114 * b
    u, v = (b - y) / 1.772, (r - y) / 1.402
    return round(16 + 219 * y), round(128 + 224 * u), round(128 + 224 * v)


def encode(encoding: str, rgb: tuple[int, int, int] = ORANGE) -> np.ndarray:
    """Return a picture of one colour as the rows of a message: [rows, values per row]."""
    r, g, b = rgb
    y, u, v = yuv_of(rgb)
    grey = round(0.299 * r + 0.587 * g + 0.114 * b)
    pixels = {
        'rgb8': [r, g, b],
        'bgr8': [b, g, r],
        '8UC3': [b, g, r],
        'rgba8': [r, g, b, 9],
        'bgra8': [b, g, r, 9],
        'mono8': [grey],
        '8UC1': [grey],
    }
    if encoding in pixels:
        return np.tile(np.array(pixels[encoding], np.uint8), (HEIGHT, WIDTH))
    if encoding in ('mono16', '16UC1'):
        return np.full((HEIGHT, WIDTH), grey * 257, np.uint16)
    if encoding in ('uyvy', 'yuv422'):
        return np.tile(np.array([u, y, v, y], np.uint8), (HEIGHT, WIDTH // 2))
    if encoding in ('yuyv', 'yuv422_yuy2'):
        return np.tile(np.array([y, u, y, v], np.uint8), (HEIGHT, WIDTH // 2))
    if encoding.startswith('nv'):
        luma = np.full((HEIGHT, WIDTH), y, np.uint8)
        pair = np.array([v, u] if encoding == 'nv21' else [u, v], np.uint8)
        rows = 2 * HEIGHT if encoding == 'nv24' else HEIGHT // 2
        return np.vstack([luma, np.tile(pair, (rows, WIDTH // 2))])
    order = BAYER[encoding[6:10]].split('/')
    value = {'R': r, 'G': g, 'B': b}
    tile = np.array([[value[name] for name in row] for row in order], np.uint16)
    mosaic = np.tile(tile, (HEIGHT // 2, WIDTH // 2))
    return mosaic * 257 if encoding.endswith('16') else mosaic.astype(np.uint8)


@pytest.mark.parametrize('encoding', COLOURS)
@pytest.mark.parametrize('padding', [0, 3])
@pytest.mark.parametrize('is_bigendian', [False, True])
def test_every_encoding_gives_the_colour(encoding: str, padding: int, is_bigendian: bool) -> None:
    rows = encode(encoding)
    rows = rows.astype(rows.dtype.newbyteorder('>' if is_bigendian else '<'))
    raw = rows.view(np.uint8)
    if encoding == 'nv24' and padding:
        # A chroma row belongs to one picture row: its padding comes after twice the width.
        chroma = np.pad(raw[HEIGHT:].reshape(HEIGHT, -1), ((0, 0), (0, 2 * padding)))
        data = np.pad(raw[:HEIGHT], ((0, 0), (0, padding))).tobytes() + chroma.tobytes()
    else:
        data = np.pad(raw, ((0, 0), (0, padding)), constant_values=77).tobytes()
    step = raw.shape[1] + padding

    pixels = view_image(data, HEIGHT, WIDTH, encoding, step, is_bigendian)
    rgb = to_rgb(pixels, encoding)

    assert pixels.dtype.isnative
    assert picture_size(pixels, encoding) == (HEIGHT, WIDTH)
    assert rgb.shape == (HEIGHT, WIDTH, 3)
    expected = (155, 155, 155) if encoding in GREYS else ORANGE
    np.testing.assert_allclose(rgb, np.broadcast_to(expected, rgb.shape), atol=3)


@pytest.mark.parametrize('encoding', COLOURS)
def test_colours_are_written_in_place(encoding: str) -> None:
    rows = encode(encoding)
    pixels = view_image(rows, HEIGHT, WIDTH, encoding, rows.strides[0])
    canvas = np.zeros((HEIGHT + 4, WIDTH + 4, 3), np.uint8)

    result = to_rgb(pixels, encoding, canvas[2:-2, 2:-2])

    assert np.shares_memory(result, canvas)
    np.testing.assert_array_equal(canvas[2:-2, 2:-2], to_rgb(pixels, encoding))
    assert not canvas[:2].any() and not canvas[-2:].any() and not canvas[:, :2].any()


def test_raw_bytes_are_not_copied() -> None:
    data = bytearray(4 * 20)

    pixels = view_image(data, 4, 5, 'rgb8', 20)
    data[20] = 99

    assert pixels[1, 0, 0] == 99


@pytest.mark.parametrize('is_bigendian', [False, True])
def test_floats_keep_their_values_with_odd_steps(is_bigendian: bool) -> None:
    depth = np.array([[1.5, np.nan], [2.25, -3]], '>f4' if is_bigendian else '<f4')
    data = b''.join(row.tobytes() + b'abc' for row in depth)

    pixels = view_image(data, 2, 2, '32FC1', 11, is_bigendian)

    assert pixels.dtype == np.float32
    np.testing.assert_array_equal(pixels, depth.astype(np.float32))


def test_the_last_rows_padding_may_be_missing() -> None:
    pixels = view_image(bytes(range(11)), 2, 3, 'mono8', 8)

    np.testing.assert_array_equal(pixels, [[0, 1, 2], [8, 9, 10]])


@pytest.mark.parametrize(
    ('changed', 'sentence'),
    [
        ({'encoding': 'rgb9'}, "encoding 'rgb9' is unknown; expected one of .*rgb8"),
        ({'step': 11}, 'step is 11 bytes but a row of 4 rgb8 pixels takes 12'),
        ({'data': bytes(30)}, 'data has 30 bytes but 4x3 rgb8 with step 12 takes 36'),
        ({'height': 0}, 'the rgb8 image is 4x0 pixels: expected a picture with a size'),
        ({'width': -1}, 'the rgb8 image is -1x3 pixels'),
        ({'height': 100_000, 'width': 100_000}, 'more than 64000000'),
        ({'encoding': 'nv12', 'height': 3}, 'expected an even width and height'),
        ({'encoding': 'yuyv', 'width': 3}, 'expected an even width'),
    ],
)
def test_broken_images_are_refused_in_one_sentence(changed: dict, sentence: str) -> None:
    image = {'data': bytes(36), 'height': 3, 'width': 4, 'encoding': 'rgb8', 'step': 12}

    with pytest.raises(EncodingError, match=sentence) as refusal:
        view_image(**{**image, **changed})

    assert '\n' not in str(refusal.value)


def test_measurements_are_no_colours() -> None:
    with pytest.raises(EncodingError, match='32FC1 holds measurements'):
        to_rgb(np.ones((2, 2), np.float32), '32FC1')


def test_an_array_of_another_layout_is_refused() -> None:
    with pytest.raises(EncodingError, match=r'uint8 \[2, 2\] but rgb8 is uint8 \[H, W, 3\]'):
        picture_size(np.zeros((2, 2), np.uint8), 'rgb8')


def picture() -> np.ndarray:
    """Return a smooth bgr8 picture."""
    ramp = np.linspace(0, 255, 32 * 48).reshape(32, 48)
    return np.stack([ramp, ramp[::-1], np.full_like(ramp, 90)], -1).astype(np.uint8)


def file_of(kind: str, pixels: np.ndarray) -> bytes:
    return cv2.imencode(kind, pixels)[1].tobytes()


@pytest.mark.parametrize('kind', ['.png', '.jpg'])
def test_compressed_colours_are_read(kind: str) -> None:
    pixels, encoding = decode_compressed(file_of(kind, picture()), f'rgb8; {kind[1:]}')

    assert encoding == 'bgr8'
    np.testing.assert_allclose(pixels, picture(), atol=0 if kind == '.png' else 10)


def test_swapped_compressed_colours_are_named_rgb() -> None:
    _, encoding = decode_compressed(file_of('.jpg', picture()), 'rgb8; jpeg compressed rgb8')

    assert encoding == 'rgb8'


@pytest.mark.parametrize(
    ('dtype', 'format', 'expected'),
    [
        (np.uint8, 'png', 'mono8'),
        (np.uint16, 'png', 'mono16'),
        (np.uint16, '16UC1; png compressed', '16UC1'),
        (np.uint8, 'bayer_grbg8; png compressed', 'bayer_grbg8'),
        (np.uint8, 'bgr8; png compressed', 'mono8'),
    ],
)
def test_compressed_grey_keeps_its_meaning(dtype: type, format: str, expected: str) -> None:
    grey = np.arange(12, dtype=dtype).reshape(3, 4)

    pixels, encoding = decode_compressed(file_of('.png', grey), format)

    assert encoding == expected
    np.testing.assert_array_equal(pixels, grey)


@pytest.mark.parametrize('kind', ['.png', '.jpg'])
def test_cut_off_or_foreign_files_are_refused(kind: str) -> None:
    whole = file_of(kind, picture())
    for cut in (0, 5, 12):
        with pytest.raises(EncodingError):
            decode_compressed(whole[:cut], 'x')
    with pytest.raises(EncodingError, match='neither jpeg nor png'):
        decode_compressed(b'GIF89a' + whole, 'gif')


def test_a_header_that_announces_gigabytes_is_refused_before_decoding() -> None:
    png = bytearray(file_of('.png', picture()))
    png[16:24] = struct.pack('>II', 60_000, 60_000)
    jpeg = bytearray(file_of('.jpg', picture()))
    frame = jpeg.index(b'\xff\xc0')
    jpeg[frame + 5 : frame + 9] = struct.pack('>HH', 60_000, 60_000)

    for data in (png, jpeg):
        with pytest.raises(EncodingError, match='60000x60000 pixels, more than'):
            decode_compressed(bytes(data), 'x')


def test_compressed_depth_in_millimetres() -> None:
    depth_mm = np.array([[0, 1500], [65535, 7]], np.uint16)

    read = decode_compressed_depth(bytes(12) + file_of('.png', depth_mm))

    np.testing.assert_array_equal(read, depth_mm)


def test_compressed_depth_in_metres_follows_the_quantisation() -> None:
    # depth = a / (stored - b), 0 = invalid (compressed_depth_image_transport, codec.cpp)
    header = struct.pack('<iff', 0, 100.0, -1.0)
    stored = np.array([[0, 99], [49, 9]], np.uint16)

    read = decode_compressed_depth(header + file_of('.png', stored), '32FC1; compressedDepth png')

    np.testing.assert_allclose(read, [[np.nan, 1], [2, 10]])


@pytest.mark.parametrize(
    ('data', 'format', 'sentence'),
    [
        (b'short', '16UC1; compressedDepth', 'no png after its 12-byte header'),
        (bytes(40), '16UC1; compressedDepth rvl', 'compressed with RVL; png is expected'),
        (bytes(12) + file_of('.png', picture()), '16UC1; compressedDepth', 'no whole 16-bit png'),
    ],
)
def test_broken_compressed_depth_is_refused(data: bytes, format: str, sentence: str) -> None:
    with pytest.raises(EncodingError, match=sentence):
        decode_compressed_depth(data, format)
