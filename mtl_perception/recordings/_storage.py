"""Messages of ROS 1 and ROS 2 bags as a stream, also of bags that were cut off.

Standard messages need no ROS installation: `rosbags` knows them.
"""

from __future__ import annotations

import io
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from rosbags import rosbag1, rosbag2
from rosbags.rosbag2.storage_mcap import McapReader
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

from mtl_perception.recordings import _vision_msgs

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

STORAGE_SUFFIXES = ('.mcap', '.db3')
BAG_SUFFIXES = (*STORAGE_SUFFIXES, '.bag', '.mcap.zstd', '.db3.zstd')
_ZSTD_MAGIC = b'\x28\xb5\x2f\xfd'
_MCAP_MAGIC = b'\x89MCAP0\r\n'
_MCAP_FOOTER, _MCAP_CHUNK, _MCAP_DATA_END = 0x02, 0x06, 0x0F
_MOST_OF_A_CHUNK = 64 << 20


class BagError(ValueError):
    """A bag from which nothing can be read."""


@dataclass(frozen=True)
class BagMessage:
    """One message as it was recorded.

    Attributes:
        topic: name of the topic.
        type: such as 'sensor_msgs/msg/Image'.
        time_ns: when it was recorded.
        data: serialized; `Bag.decode` makes an object of it.
    """

    topic: str
    type: str
    time_ns: int
    data: bytes


@cache
def _typestore(ros1: bool) -> Typestore:
    store = get_typestore(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_KILTED)
    if not ros1:
        _vision_msgs.register(store)
    return store


def is_bag(path: Path) -> bool:
    """Tell whether a path looks like one bag: a bag file, or a folder with the files of one.

    Without metadata.yaml, as a recorder that crashed leaves it, the files of one bag are told
    from a folder of several recordings by their names, which begin with the folder's.
    """
    if path.is_file():
        return path.name.endswith(BAG_SUFFIXES)
    if not path.is_dir():
        return False
    if (path / 'metadata.yaml').is_file():
        return True
    files = _storage_files(path)
    if not files or all(file.name.startswith(path.name) for file in files):
        return bool(files)
    return len(files) == 1 and not any(child.is_dir() for child in path.iterdir())


def _storage_files(folder: Path) -> list[Path]:
    suffixes = tuple(suffix for suffix in BAG_SUFFIXES if suffix != '.bag')
    # Split bags are numbered: name_2.mcap comes before name_10.mcap.
    files = [file for file in folder.iterdir() if file.name.endswith(suffixes)]
    return sorted(files, key=lambda file: (len(file.name), file.name))


class _Joined(io.RawIOBase):
    """A file's first `end` bytes, followed by `tail`."""

    def __init__(self, file: BinaryIO, end: int, tail: bytes) -> None:
        self._file, self._end, self._tail = file, end, tail
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        size = self._end + len(self._tail)
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: size}[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:
        if self._at < self._end:
            self._file.seek(self._at)
            data = self._file.read(min(len(buffer), self._end - self._at))
        else:
            start = self._at - self._end
            data = self._tail[start : start + len(buffer)]
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _whole_records(read: Callable[[int, int], bytes], at: int, size: int) -> int:
    """Return where the whole mcap records between `at` and `size` end."""
    while at + 9 <= size:
        record = read(at, 9)
        end = at + 9 + int.from_bytes(record[1:], 'little')
        if end > size or record[0] in (_MCAP_DATA_END, _MCAP_FOOTER):
            break
        at = end
    return at


def _rest_of_chunk(data: bytes) -> bytes:
    """Return the whole records within a cut-off chunk record (MCAP specification, op 0x06)."""
    if len(data) < 41 or data[0] != _MCAP_CHUNK:
        return b''
    name_end = 41 + int.from_bytes(data[37:41], 'little')
    compression, body = data[41:name_end], data[name_end + 8 :]
    if compression == b'zstd':
        try:
            body = zstd.ZstdDecompressor().decompress(body)
        except zstd.ZstdError:
            return b''
    elif compression:
        return b''
    return body[: _whole_records(lambda at, size: body[at : at + size], 0, len(body))]


class _CutOffMcap(McapReader):
    """Reads the whole records of an mcap file whose end, and so whose index, is missing."""

    def _open(self) -> None:
        file = self.bio
        assert file

        def read(at: int, size: int) -> bytes:
            file.seek(at)
            return file.read(size)

        size = self.path.stat().st_size
        if read(0, 8) != _MCAP_MAGIC:
            raise rosbag2.ReaderError('it does not begin as an mcap file')
        self.data_start = 8
        end = _whole_records(read, 8, size)
        tail = _rest_of_chunk(read(end, _MOST_OF_A_CHUNK))
        self.data_end = end + len(tail)
        self.bio = io.BufferedReader(_Joined(file, end, tail))
        self.meta_scan()

    def messages(
        self, connections: Collection[Any], start: int | None = None, stop: int | None = None
    ) -> Iterator[tuple[Any, int, bytes]]:
        return self.messages_scan(connections, start, stop)


class Bag:
    """One bag: a file, a rosbag2 folder, or a folder of storage files without metadata.

    Use as a context manager.

    Args:
        path: a .mcap, .db3 or .bag file (also .zstd), or a rosbag2 folder.

    Attributes:
        topics: topic name -> message type.
        counts: topic name -> number of messages.
        problems: one sentence for everything that could not be read.

    Raises:
        BagError: on entering, when nothing can be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.topics: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.problems: list[str] = []
        self._ros1 = self.path.suffix == '.bag'
        self._readers: list[Any] = []
        self._stack = ExitStack()

    @property
    def is_ros2(self) -> bool:
        """Whether messages are serialized as CDR."""
        return not self._ros1

    def __enter__(self) -> Bag:
        try:
            self._open()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _open(self) -> None:
        if not self.path.exists():
            raise BagError(f'{self.path} does not exist: give a bag file or folder')
        if self._ros1:
            self._try_open(self.path, rosbag1.Reader)
        elif self.path.is_file():
            self._open_file(self.path)
        else:
            self._open_folder()
        connections = [c for reader in self._readers for c in reader.connections]
        if not connections:
            reasons = '; '.join(self.problems) or 'it holds no topics'
            raise BagError(f'nothing can be read from {self.path}: {reasons}')
        for connection in connections:
            self.topics.setdefault(connection.topic, connection.msgtype)
            known = self.counts.get(connection.topic, 0)
            self.counts[connection.topic] = known + connection.msgcount

    def _open_folder(self) -> None:
        if (self.path / 'metadata.yaml').is_file():
            if self._try_open(self.path, rosbag2.Reader):
                return
        else:
            self.problems.append(
                f'{self.path.name} has no metadata.yaml: its files are read alone'
            )
        for file in _storage_files(self.path):
            self._open_file(file)

    def _open_file(self, file: Path) -> None:
        if file.suffix == '.zstd':
            file = self._decompressed(file)
        if file.suffix == '.mcap':
            if not self._try_open(file, rosbag2.Reader):
                self._try_open(file, _CutOffMcap)
        else:
            self._try_open(file, rosbag2.Reader)

    def _try_open(self, path: Path, make: Any) -> bool:
        try:
            reader = make(path)
            reader.open()
        # The readers pass on what zstd, lz4, sqlite and struct raise on damaged bytes.
        except Exception as error:
            self.problems.append(f'{path.name} is damaged: {_reason(error)}')
            return False
        self._stack.callback(reader.close)
        self._readers.append(reader)
        return True

    def _decompressed(self, file: Path) -> Path:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        target = Path(folder) / file.stem
        with zstd.open(file, 'rb') as source, target.open('wb') as sink:
            try:
                shutil.copyfileobj(source, sink)
            except (zstd.ZstdError, EOFError) as error:
                self.problems.append(f'{file.name} is damaged: {_reason(error)}')
        return target

    def messages(self, topics: Collection[str]) -> Iterator[BagMessage]:
        """Yield the messages of some topics in recorded order.

        Damage ends the stream of the file concerned and is added to `problems`.
        """
        for reader in self._readers:
            wanted = [c for c in reader.connections if c.topic in topics]
            if not wanted:
                continue
            stream = iter(reader.messages(connections=wanted))
            while True:
                try:
                    connection, time_ns, data = next(stream)
                    if data[:4] == _ZSTD_MAGIC:
                        # Compressed messages of a bag whose metadata.yaml would tell so.
                        data = zstd.decompress(data)
                except StopIteration:
                    break
                except Exception as error:
                    self.problems.append(f'{self.path.name} ends early: {_reason(error)}')
                    break
                yield BagMessage(connection.topic, connection.msgtype, time_ns, data)

    def stamp_ns(self, message: BagMessage) -> int:
        """Return the stamp of a message that begins with a header, without decoding the rest.

        A driver that leaves the stamp at zero gets the time of recording instead.
        """
        # ROS 1 puts the sequence number, ROS 2 the encapsulation into the first four bytes.
        little = self._ros1 or bool(message.data[1] & 1) if len(message.data) >= 12 else None
        if little is None:
            return message.time_ns
        sec, nanosec = struct.unpack_from('<II' if little else '>II', message.data, 4)
        return sec * 1_000_000_000 + nanosec or message.time_ns

    def decode(self, message: BagMessage) -> Any:
        """Return the message as an object with the fields of its type.

        Raises:
            BagError: the bytes are no such message.
        """
        store = _typestore(self._ros1)
        read = store.deserialize_ros1 if self._ros1 else store.deserialize_cdr
        try:
            return read(message.data, message.type)
        except Exception as error:
            raise BagError(
                f'a message of {message.topic} is no {message.type}: {_reason(error)}'
            ) from error


def _reason(error: BaseException) -> str:
    return str(error).strip().rstrip('.') or type(error).__name__
