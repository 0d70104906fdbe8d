"""Reading and converting images. Everywhere else images are float32 tensors (n, channels, height, width) in [-1, 1]."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy.fft import dct
from torch import Tensor

from audit.errors import InvalidInput, NotFound

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
#: What Pillow may take a file for, whatever its name: it knows formats that start other programs.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
#: An image that decodes to more pixels than this is refused before it is decoded.
MAX_PIXELS = 64_000_000
#: The same of what a caller of a server sent, who may be anybody: few decoders, and 200 MB as float32.
UPLOAD_FORMATS = ("PNG", "JPEG", "WEBP")
UPLOAD_PIXELS = 4096 * 4096
#: Pixel distances are taken at this longer side; larger images are averaged down first.
PIXEL_SIDE = 64
#: Frequencies a side that are kept of the brightness and of each of two colour differences: 246 values.
LUMA, CHROMA = 14, 5
#: Brightness and two differences of red, green and blue, an orthonormal basis.
_COLOURS = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [1.0, 1.0, -2.0]])
_COLOURS /= _COLOURS.norm(dim=1, keepdim=True)


def read_image(source: Path | bytes) -> NDArray[np.uint8]:
    """Decode one image to uint8, (height, width) when it is greyscale and (height, width, 3) otherwise.

    Raises:
        InvalidInput: the bytes are no image, or one of too many pixels.
    """
    if isinstance(source, Path):
        return _decode(source, source.name, IMAGE_FORMATS, MAX_PIXELS)
    return _decode(io.BytesIO(source), "the image", IMAGE_FORMATS, MAX_PIXELS)


def read_upload(content: bytes) -> NDArray[np.uint8]:
    """As `read_image`, of fewer formats and pixels.

    Raises:
        InvalidInput: the bytes are no image, or one of too many pixels.
    """
    return _decode(io.BytesIO(content), "the upload", UPLOAD_FORMATS, UPLOAD_PIXELS)


def upload_size(content: bytes) -> tuple[int, int]:
    """Height and width of an upload as its header has them; its pixels are not decoded, and may be damaged.

    Raises:
        InvalidInput: the bytes are no image, or one of too many pixels.
    """
    with _opened(io.BytesIO(content), "the upload", UPLOAD_FORMATS, UPLOAD_PIXELS) as image:
        return image.height, image.width


def _decode(source: Path | io.BytesIO, name: str, formats: tuple[str, ...], most: int) -> NDArray[np.uint8]:
    with _opened(source, name, formats, most) as image:
        if image.mode.startswith("I;16"):  # Pillow would cut these off at 255
            return (np.asarray(image) >> 8).astype(np.uint8)
        if image.mode in ("I", "F"):
            raise ValueError("values without a scale")
        return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA") else "RGB"))


@contextmanager
def _opened(source: Path | io.BytesIO, name: str, formats: tuple[str, ...], most: int) -> Iterator[Image.Image]:
    """An image of which only the header was read; whatever goes wrong with it in here is the image's fault."""
    try:
        with Image.open(source, formats=formats) as image:
            if image.width * image.height > most:
                raise InvalidInput(
                    f"{name} has {image.width}×{image.height} pixels, more than {most:,}",
                    reason="IMAGE_TOO_LARGE",
                    field="image",
                )
            yield image
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"{name} is not a readable image", reason="IMAGE_UNREADABLE", field="image") from error


def read_images(source: Path) -> tuple[NDArray[np.uint8], list[str]]:
    """Read a folder of image files or a NumPy archive.

    Args:
        source: a folder (searched recursively, in the order of the names, all images of one size), or an .npz file
            with `images`, uint8, (n, height, width) or (n, height, width, 3), and optionally `captions`, n strings.

    Returns:
        images, uint8, (n, height, width, channels) with 1 or 3 channels; and one caption per image (in a folder:
        the file's name).

    Raises:
        NotFound: there is nothing at `source`.
        InvalidInput: it holds no images, images of several sizes, or arrays of the wrong kind.
    """
    if source.is_dir():
        return _read_folder(source)
    if not source.is_file():
        raise NotFound(f"no images at {source}", reason="IMAGES_NOT_FOUND", field="images")
    try:
        with np.load(source, allow_pickle=False) as arrays:
            images = arrays["images"]
            captions = [str(c) for c in arrays["captions"]] if "captions" in arrays else [""] * len(images)
    except Exception as error:  # numpy and zipfile raise anything at all for a damaged file
        raise InvalidInput(
            f"{source.name} is not a NumPy archive with an array `images`", reason="IMAGES_UNREADABLE", field="images"
        ) from error
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3) or not images.size:
        raise InvalidInput(
            f"`images` of {source.name} must be uint8, (n, height, width) or (n, height, width, 3), "
            f"not {images.dtype} {images.shape}",
            reason="IMAGES_WRONG_SHAPE",
            field="images",
        )
    if len(captions) != len(images):
        raise InvalidInput(
            f"{source.name} has {len(images)} images but {len(captions)} captions",
            reason="IMAGES_WRONG_SHAPE",
            field="images",
        )
    return images, captions


def _read_folder(folder: Path) -> tuple[NDArray[np.uint8], list[str]]:
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise InvalidInput(f"{folder.name} holds no images", reason="IMAGES_EMPTY", field="images")
    images = [read_image(path) for path in files]
    if len({image.ndim for image in images}) > 1:
        images = [np.repeat(image[..., None], 3, axis=-1) if image.ndim == 2 else image for image in images]
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        shown = ", ".join(f"{height}×{width}" for height, width in sorted(sizes)[:3])
        raise InvalidInput(
            f"the images of {folder.name} have {len(sizes)} sizes ({shown} …); bring them to one size",
            reason="IMAGES_MIXED_SIZES",
            field="images",
        )
    stacked = np.stack(images)
    return (
        stacked[..., None] if stacked.ndim == 3 else stacked,
        [path.relative_to(folder).as_posix() for path in files],
    )


def to_float(images: NDArray[np.uint8]) -> Tensor:
    """uint8 (n, height, width, channels) to float32 (n, channels, height, width) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def to_bytes(images: Tensor) -> NDArray[np.uint8]:
    """The inverse of `to_float`, rounded."""
    array: NDArray[np.uint8] = (
        images.add(1.0).mul(127.5).round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).cpu().numpy()
    )
    return array


def encode_png(image: NDArray[np.uint8]) -> bytes:
    """uint8 (height, width, channels) as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def with_channels(images: Tensor, channels: int) -> Tensor:
    """Images with 1 or 3 channels: grey is repeated, colour is averaged."""
    if images.shape[1] == channels:
        return images
    return images.expand(-1, 3, -1, -1) if channels == 3 else images.mean(1, keepdim=True)


def pixel_vectors(images: Tensor, channels: int, side: tuple[int, int]) -> Tensor:
    """Images as the vectors whose ℓ2 distance is the pixel distance.

    Args:
        images: (n, c, height, width) in [-1, 1].
        channels: of the reference set, 1 or 3.
        side: height and width of the reference set's images; brought down to `PIXEL_SIDE` where they are larger.

    Returns:
        float32, (n, channels × height × width).
    """
    size = pixel_size(side)
    images = with_channels(images.float(), channels)
    if images.shape[-2:] != size:
        images = F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
    return images.flatten(1).contiguous()


def pixel_size(side: tuple[int, int]) -> tuple[int, int]:
    """Height and width at which the pixels of a reference set are compared."""
    shrink = min(1.0, PIXEL_SIDE / max(side))
    return max(1, round(side[0] * shrink)), max(1, round(side[1] * shrink))


def low_frequencies(images: Tensor, side: tuple[int, int]) -> Tensor:
    """The lowest frequencies of pixel vectors, in which images that are near are near too.

    The first coefficients of an orthonormal cosine transform, more of the brightness than of the colour: a projection,
    so that no two images are farther apart in it than in their pixels (as colour images).

    Args:
        images: (n, c, height, width) in [-1, 1].
        side: height and width of the reference set's images.

    Returns:
        float32, (n, a multiple of 16), filled up with zeros.
    """
    height, width = pixel_size(side)
    pixels = pixel_vectors(images, 3, side).view(-1, 3, height, width)
    planes = torch.einsum("kc,nchw->knhw", _COLOURS, pixels)
    waves = [torch.from_numpy(dct(np.eye(size, dtype=np.float32), axis=0, norm="ortho")) for size in (height, width)]
    kept = []
    for plane, count in zip(planes, (LUMA, CHROMA, CHROMA), strict=True):
        kept.append((waves[0][:count] @ plane @ waves[1][:count].T).flatten(1))
    vectors = torch.cat(kept, 1)
    return F.pad(vectors, (0, -vectors.shape[1] % 16)).contiguous()


def fit(image: NDArray[np.uint8], side: tuple[int, int] | None) -> NDArray[np.uint8]:
    """An image as (height, width, 1 or 3), scaled to cover a size and cut around its middle.

    Args:
        image: uint8, (height, width) or (height, width, 1 or 3).
        side: wanted height and width; None leaves it as it is.
    """
    image = image[..., None] if image.ndim == 2 else image
    if side is None or image.shape[:2] == side:
        return image
    whole = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    return np.asarray(ImageOps.fit(whole, side[::-1], Image.Resampling.BICUBIC)).reshape(*side, image.shape[-1])


def thumbnail(image: NDArray[np.uint8], side: int) -> bytes:
    """uint8 (height, width, channels) as a JPEG file of at most `side` pixels on its longer side."""
    small, buffer = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image), io.BytesIO()
    small.thumbnail((side, side), Image.Resampling.BICUBIC)
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def in_chunks(total: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size` that cover range(total)."""
    return (slice(start, min(start + size, total)) for start in range(0, total, size))
