"""Images that a caller sends for a reference set. They wait on disk until all of them are there."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from google.protobuf import proto

from audit.errors import InvalidInput
from audit.reference.images import upload_size
from audit.reference.sources import Item, Source
from audit.reference.tables import MAX_CHARACTERS
from audit.v1 import reference_pb2
from service.config_parts import ReferenceStorePart

MAX_KEY = 1024
#: Pixels of a stream: what takes hundreds of bytes to send may take minutes to decode.
MAX_PIXELS = 2**34
#: What an error message calls it.
NAME = Path("the upload")


def check_upload(image: bytes, image_bytes: int) -> None:
    """Refuse an uploaded image that is out of bounds before it is decoded.

    Raises:
        InvalidInput: there is none, or it has more than `image_bytes`.
    """
    if not image:
        raise InvalidInput("there is no image", reason="IMAGE_EMPTY", field="image")
    if len(image) > image_bytes:
        raise InvalidInput(
            f"the image has {len(image)} bytes, at most {image_bytes} are read",
            reason="IMAGE_TOO_LARGE",
            field="image",
        )


class Upload:
    """The images of a stream, in a file that nobody can see and that is gone with this process.

    Args:
        settings: bounds.
        image_bytes: most of an image.
        folder: of the file.

    Attributes:
        images: so far.
        pixels: of those that can be read, as far as their headers tell.
    """

    def __init__(self, settings: ReferenceStorePart, image_bytes: int, folder: Path) -> None:
        self._settings = settings
        self._image_bytes = image_bytes
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - `close` closes it
        self._content = hashlib.sha256()
        self._bytes = 0
        self.images = 0
        self.pixels = 0

    def add(self, images: Iterable[reference_pb2.NewImage]) -> None:
        """Take images in. What cannot be read is kept as such. Writes to disk: run it in a thread.

        Raises:
            InvalidInput: there are too many, too many bytes or pixels of them, or one has too long a text.
        """
        for image in images:
            place = f"images[{self.images}]"
            for field, most in (("key", MAX_KEY), ("caption", MAX_CHARACTERS), ("url", MAX_CHARACTERS)):
                if len(getattr(image, field)) > most:
                    raise InvalidInput(
                        f"the {field} of image {self.images} has more than {most:,} characters",
                        reason="TEXT_TOO_LONG",
                        field=f"{place}.{field}",
                    )
            self._bytes += image.ByteSize()
            for what, count, most in (
                ("images", self.images + 1, self._settings.stream_images),
                ("bytes", self._bytes, self._settings.stream_bytes),
            ):
                if count > most:
                    raise InvalidInput(
                        f"more than the {most:,} {what} that a stream may have: send several",
                        reason=f"TOO_MANY_{what.upper()}",
                        field="images",
                    )
            self._write(image)
            self.images += 1

    def _write(self, image: reference_pb2.NewImage) -> None:
        fault = ""
        try:
            check_upload(image.image, self._image_bytes)
            height, width = upload_size(image.image)
            self.pixels += height * width
        except InvalidInput as error:
            fault = str(error)
        if self.pixels > MAX_PIXELS:
            raise InvalidInput(
                f"more than the {MAX_PIXELS:,} pixels that a stream may have: send several",
                reason="TOO_MANY_PIXELS",
                field="images",
            )
        kept = reference_pb2.NewImage(
            image=b"" if fault else image.image,
            key=image.key or hashlib.sha256(image.image).hexdigest(),
            caption=image.caption,
            url=image.url,
        )
        for part in (kept, reference_pb2.LeftOutImage(key=kept.key, reason=fault)):
            self._content.update(part.SerializeToString(deterministic=True))
            proto.serialize_length_prefixed(part, cast(Any, self._file))  # typed for memory alone

    def source(self) -> Source:
        """The images as a reference set takes them in, once they are all there."""
        return Source("upload", [NAME], self._content.hexdigest(), embedded=False, read=self._read, keyed=True)

    def _read(self, _: Path) -> Iterator[Item]:
        self._file.seek(0)
        stream = cast(Any, self._file)
        while (image := proto.parse_length_prefixed(reference_pb2.NewImage, stream)) is not None:
            about = proto.parse_length_prefixed(reference_pb2.LeftOutImage, stream)
            assert about is not None
            content = None if about.reason else image.image
            yield Item(image.key, image.caption, image.url, content=content, fault=about.reason)

    def close(self) -> None:
        """Give the disk back."""
        self._file.close()
