"""Read the pixels of ROS images, raw and compressed, without ROS.

The names are those of sensor_msgs/image_encodings.hpp. `view_image` lays an array over the bytes
of a message, `to_rgb` turns it into the network's colours, `decode_compressed` and
`decode_compressed_depth` read what compressed_image_transport and compressed_depth_image_transport
write.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

MAX_PIXELS = 64_000_000
"""Largest picture that is read; a broken header must not make the node ask for gigabytes."""


class EncodingError(ValueError):
    """An image that can't be read: its encoding, size, step or data is wrong."""


class TooLargeError(EncodingError):
    """An image with more pixels than are allowed; nothing was decoded."""


@dataclass(frozen=True)
class _Layout:
    """How one encoding lies in memory.

    Attributes:
        dtype: of one value.
        channels: values per pixel; 0 for a plane without a channel axis.
        rows: rows of `step` bytes per picture row; 1.5 or 3 with chroma planes behind the luma.
        code: OpenCV's conversion to RGB; None where there is nothing to convert or no conversion.
        resizable: True where neighbouring pixels may be averaged before the conversion.
    """

    dtype: str
    channels: int
    rows: float = 1
    code: int | None = None
    resizable: bool = False


_LAYOUTS = {
    'rgb8': _Layout('u1', 3, resizable=True),
    'bgr8': _Layout('u1', 3, code=cv2.COLOR_BGR2RGB, resizable=True),
    '8UC3': _Layout('u1', 3, code=cv2.COLOR_BGR2RGB, resizable=True),
    'rgba8': _Layout('u1', 4, code=cv2.COLOR_RGBA2RGB, resizable=True),
    'bgra8': _Layout('u1', 4, code=cv2.COLOR_BGRA2RGB, resizable=True),
    'mono8': _Layout('u1', 0, code=cv2.COLOR_GRAY2RGB, resizable=True),
    '8UC1': _Layout('u1', 0, code=cv2.COLOR_GRAY2RGB, resizable=True),
    'mono16': _Layout('u2', 0, code=cv2.COLOR_GRAY2RGB, resizable=True),
    '16UC1': _Layout('u2', 0, code=cv2.COLOR_GRAY2RGB, resizable=True),
    '32FC1': _Layout('f4', 0),
    '32FC3': _Layout('f4', 3),
    'uyvy': _Layout('u1', 2, code=cv2.COLOR_YUV2RGB_UYVY),
    'yuv422': _Layout('u1', 2, code=cv2.COLOR_YUV2RGB_UYVY),
    'yuyv': _Layout('u1', 2, code=cv2.COLOR_YUV2RGB_YUY2),
    'yuv422_yuy2': _Layout('u1', 2, code=cv2.COLOR_YUV2RGB_YUY2),
    'nv12': _Layout('u1', 0, rows=1.5, code=cv2.COLOR_YUV2RGB_NV12),
    'nv21': _Layout('u1', 0, rows=1.5, code=cv2.COLOR_YUV2RGB_NV21),
    'nv24': _Layout('u1', 0, rows=3),
    'bayer_rggb8': _Layout('u1', 0, code=cv2.COLOR_BayerRGGB2RGB),
    'bayer_bggr8': _Layout('u1', 0, code=cv2.COLOR_BayerBGGR2RGB),
    'bayer_gbrg8': _Layout('u1', 0, code=cv2.COLOR_BayerGBRG2RGB),
    'bayer_grbg8': _Layout('u1', 0, code=cv2.COLOR_BayerGRBG2RGB),
    'bayer_rggb16': _Layout('u2', 0, code=cv2.COLOR_BayerRGGB2RGB),
    'bayer_bggr16': _Layout('u2', 0, code=cv2.COLOR_BayerBGGR2RGB),
    'bayer_gbrg16': _Layout('u2', 0, code=cv2.COLOR_BayerGBRG2RGB),
    'bayer_grbg16': _Layout('u2', 0, code=cv2.COLOR_BayerGRBG2RGB),
}

SUPPORTED_ENCODINGS: frozenset[str] = frozenset(_LAYOUTS)

# BT.601 with luma 16..235, the matrix that OpenCV uses for its other YUV layouts.
_YUV_TO_RGB = np.array(
    [
        [1.164383, 0.0, 1.596027, -222.921],
        [1.164383, -0.391762, -0.812968, 135.576],
        [1.164383, 2.017232, 0.0, -276.836],
    ],
    np.float32,
)


def view_image(
    data: Any,
    height: int,
    width: int,
    encoding: str,
    step: int,
    is_bigendian: bool = False,
) -> np.ndarray:
    """Lay an array over the bytes of a sensor_msgs/Image; copy only where numpy can't view them.

    Args:
        data: anything with the buffer protocol (array.array, bytes, uint8 array).
        height: of the picture, pixels (of the luma plane for nv12, nv21 and nv24).
        width: of the picture, pixels.
        encoding: one of SUPPORTED_ENCODINGS.
        step: bytes from one row to the next; padding at a row's end is allowed.
        is_bigendian: byte order of 16- and 32-bit values.

    Returns:
        uint8, uint16 or float32 in native byte order: [H, W] for single-channel and Bayer
        encodings, [H, W, 2] for packed YUV 4:2:2, [H, W, 3] or [H, W, 4] for colours; the planes
        of nv12 and nv21 as [3 H / 2, W] and those of nv24 as [3 H, W], as OpenCV stores them.

    Raises:
        EncodingError: unknown encoding, zero or too large size, a step shorter than a row, or
            fewer bytes than the size asks for.
    """
    layout = _layout(encoding)
    _check_size(height, width, encoding)
    dtype = np.dtype(layout.dtype).newbyteorder('>' if is_bigendian else '<')
    row = width * max(layout.channels, 1) * dtype.itemsize
    if step < row:
        raise EncodingError(
            f'step is {step} bytes but a row of {width} {encoding} pixels takes {row}: '
            'set step to the number of bytes per row'
        )
    if layout.rows == 1.5 and (height % 2 or width % 2):
        raise EncodingError(
            f'{encoding} shares colour among 2x2 pixels but the size is {width}x{height}: '
            'expected an even width and height'
        )
    if layout.channels == 2 and width % 2:
        raise EncodingError(
            f'{encoding} shares colour among two pixels but the width is {width}: '
            'expected an even width'
        )
    rows = int(height * layout.rows)
    # Some drivers leave out the padding after the last row.
    needed = step * (rows - 1) + row
    flat = np.frombuffer(data, np.uint8)
    if flat.size < needed:
        raise EncodingError(
            f'data has {flat.size} bytes but {width}x{height} {encoding} with step {step} '
            f'takes {needed}: the image was cut off or its size is wrong'
        )
    if encoding == 'nv24' and step != width:
        return _view_nv24(flat, height, width, step)
    shape = (rows, width, layout.channels) if layout.channels else (rows, width)
    strides = (step, max(layout.channels, 1) * dtype.itemsize, dtype.itemsize)
    pixels = np.ndarray(shape, dtype, flat, strides=strides[: len(shape)])
    if dtype.itemsize > 1 and (not dtype.isnative or step % dtype.itemsize):
        pixels = np.ascontiguousarray(pixels, dtype.newbyteorder('='))
    return pixels


def picture_size(pixels: np.ndarray, encoding: str) -> tuple[int, int]:
    """Return (height, width) of the picture that `view_image` laid out.

    Raises:
        EncodingError: unknown encoding, or an array that is no such picture.
    """
    layout = _layout(encoding)
    dimensions = 3 if layout.channels else 2
    channels = pixels.shape[2] if pixels.ndim == 3 else 0
    if (
        pixels.ndim != dimensions
        or channels != layout.channels
        or pixels.dtype != np.dtype(layout.dtype)
    ):
        expected = f'[H, W, {layout.channels}]' if layout.channels else '[H, W]'
        raise EncodingError(
            f'pixels are {pixels.dtype} {list(pixels.shape)} but {encoding} is '
            f'{np.dtype(layout.dtype)} {expected}: give the array that view_image returns'
        )
    height, width = int(pixels.shape[0] / layout.rows), pixels.shape[1]
    _check_size(height, width, encoding)
    return height, width


def can_resize(encoding: str) -> bool:
    """Tell whether pixels may be averaged before `to_rgb` (not so for Bayer and YUV layouts)."""
    return _layout(encoding).resizable


def to_rgb(pixels: np.ndarray, encoding: str, out: np.ndarray | None = None) -> np.ndarray:
    """Turn pixels as `view_image` returns them into colours.

    16-bit values keep their high byte. 16UC1 is read as brightness, like mono16.

    Args:
        pixels: the picture's array.
        encoding: its name.
        out: uint8 [H, W, 3] to write to; made when None.

    Returns:
        uint8 [H, W, 3] RGB: `out` if given; for rgb8 without `out`, `pixels` itself.

    Raises:
        EncodingError: unknown encoding, an array of another layout, or 32FC1 / 32FC3, which hold
            measurements.
    """
    height, width = picture_size(pixels, encoding)
    layout = _LAYOUTS[encoding]
    if layout.dtype == 'f4':
        raise EncodingError(
            f'{encoding} holds measurements, no colours: '
            'subscribe to a colour or grey image (rgb8, bgr8, mono8, ...)'
        )
    if out is not None and (out.shape != (height, width, 3) or out.dtype != np.uint8):
        raise EncodingError(
            f'out is {out.dtype} {list(out.shape)} but the picture needs '
            f'uint8 {[height, width, 3]}'
        )
    if encoding == 'rgb8':
        if out is None:
            return pixels
        np.copyto(out, pixels)
        return out
    if encoding == 'nv24':
        planes = np.empty((height, width, 3), np.uint8)
        planes[..., 0] = pixels[:height]
        planes[..., 1:] = np.ascontiguousarray(pixels[height:]).reshape(height, width, 2)
        return _into(out, cv2.transform(planes, _YUV_TO_RGB, out))
    if layout.dtype == 'u2':
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / 65535)
    return _into(out, cv2.cvtColor(pixels, layout.code, out))


def decode_compressed(
    data: Any, format: str = '', max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, str]:
    """Decode a sensor_msgs/CompressedImage (jpeg or png).

    Args:
        data: the file's bytes.
        format: of the message, e.g. 'bgr8; jpeg compressed bgr8' or 'png'; tells whether the
            colours were stored swapped and whether a grey picture is a Bayer mosaic.
        max_pixels: larger pictures are refused by what their header announces.

    Returns:
        The pixels (uint8 or uint16, [H, W] or [H, W, C]) and their encoding: 'bgr8', 'rgb8',
        'bgra8', 'rgba8', 'mono8', 'mono16', '16UC1' or a Bayer name.

    Raises:
        EncodingError: no jpeg or png, or cut-off data.
        TooLargeError: the picture is too large.
    """
    flat = _file_bytes(data, format, max_pixels)
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(flat, flags)
    if pixels is None:
        raise EncodingError(
            f"the {format or 'compressed'} image of {flat.size} bytes can't be decoded: "
            'it was cut off or damaged on its way'
        )
    source = format.partition(';')[0].strip()
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    if channels == 1:
        default = 'mono8' if pixels.dtype == np.uint8 else 'mono16'
        grey = source in _LAYOUTS and _LAYOUTS[source].channels == 0
        fits = grey and pixels.dtype == np.dtype(_LAYOUTS[source].dtype)
        known = fits and _LAYOUTS[source].rows == 1
        return pixels, source if known else default
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=255 / 65535)
    swapped = 'compressed rgb' in format
    return pixels, ('rgb' if swapped else 'bgr') + ('a8' if channels == 4 else '8')


def decode_compressed_depth(data: Any, format: str = '16UC1; compressedDepth png') -> np.ndarray:
    """Decode what compressed_depth_image_transport writes: a 12-byte header, then a png.

    Args:
        data: the message's bytes.
        format: of the message; '16UC1; ...' holds millimetres, '32FC1; ...' inverse depth
            quantised by the header's two parameters.

    Returns:
        uint16 [H, W] millimetres with 0 = invalid, or float32 [H, W] metres with NaN = invalid.

    Raises:
        EncodingError: RVL or another compression, no header, or damaged data.
    """
    if 'rvl' in format.lower():
        raise EncodingError(
            f'depth format {format!r} is compressed with RVL; png is expected: '
            "set the publisher's compressedDepth.format to png"
        )
    flat = np.frombuffer(data, np.uint8)
    if flat.size < 12 + len(_PNG) or flat[12:20].tobytes() != _PNG:
        raise EncodingError(
            f'compressedDepth data of {flat.size} bytes has no png after its 12-byte header: '
            'expected what compressed_depth_image_transport writes'
        )
    _, quant_a, quant_b = struct.unpack('<iff', flat[:12].tobytes())
    stored = cv2.imdecode(_file_bytes(flat[12:], format), cv2.IMREAD_UNCHANGED)
    if stored is None or stored.dtype != np.uint16 or stored.ndim != 2:
        raise EncodingError(
            f'compressedDepth data of {flat.size} bytes holds no whole 16-bit png: '
            'it was cut off or damaged on its way'
        )
    if not format.startswith('32FC1'):
        return stored
    depth = np.full(stored.shape, np.nan, np.float32)
    valid = stored > 0
    depth[valid] = quant_a / (stored[valid].astype(np.float32) - quant_b)
    return depth


_PNG = b'\x89PNG\r\n\x1a\n'
_JPEG = b'\xff\xd8\xff'


def _layout(encoding: str) -> _Layout:
    """Return the layout of an encoding or say which there are."""
    try:
        return _LAYOUTS[encoding]
    except KeyError:
        raise EncodingError(
            f'encoding {encoding!r} is unknown; expected one of {", ".join(sorted(_LAYOUTS))}: '
            'convert the image in the camera driver'
        ) from None


def _check_size(height: int, width: int, encoding: str, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse empty and absurdly large pictures."""
    if height <= 0 or width <= 0:
        raise EncodingError(
            f'the {encoding} image is {width}x{height} pixels: expected a picture with a size; '
            'check the camera driver'
        )
    if height * width > max_pixels:
        raise TooLargeError(
            f'the {encoding} image is {width}x{height} pixels, more than {max_pixels}: '
            "lower the camera's resolution"
        )


def _view_nv24(flat: np.ndarray, height: int, width: int, step: int) -> np.ndarray:
    """Copy padded nv24 planes to [3 H, W]; a chroma row takes two steps."""
    luma = np.ndarray((height, width), np.uint8, flat, strides=(step, 1))
    chroma = np.ndarray(
        (height, 2 * width), np.uint8, flat[step * height :], strides=(2 * step, 1)
    )
    return np.concatenate([luma, chroma.reshape(2 * height, width)])


def _into(out: np.ndarray | None, result: np.ndarray) -> np.ndarray:
    """Return `out` filled; OpenCV allocates anew where it can't write to `out` directly."""
    if out is None or result is out:
        return result
    if not np.shares_memory(result, out):
        np.copyto(out, result)
    return out


def _file_bytes(data: Any, format: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the bytes of a jpeg or png whose header announces a sane size."""
    flat = np.frombuffer(data, np.uint8)
    head = flat[:8].tobytes()
    if head == _PNG and flat.size >= 24:
        width, height = struct.unpack('>II', flat[16:24].tobytes())
    elif head[:3] == _JPEG:
        height, width = _jpeg_size(memoryview(flat))
    else:
        raise EncodingError(
            f'the compressed image ({format!r}, {flat.size} bytes) is neither jpeg nor png: '
            "set the publisher's format to jpeg or png"
        )
    _check_size(height, width, format or 'compressed', max_pixels)
    return flat


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    """Return (height, width) from a JPEG's start-of-frame segment (ITU-T T.81, B.2.2)."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return struct.unpack('>HH', data[at + 5 : at + 9])
        else:
            at += 2 + struct.unpack('>H', data[at + 2 : at + 4])[0]
    raise EncodingError(
        f'the jpeg of {len(data)} bytes has no frame header: it was cut off on its way'
    )
