"""The pack: a data set decoded once.

A folder that holds

    pack.json               what is in it: classes, splits, digests, moments, the source
    train.npy               uint8 (N, size, size, 3), channels last; the rows of `train`, then those of `tune`
    train.labels.npy        int64 (N,); -1 where the label was never published
    train.names.json        N strings: the path of each image inside its source
    val.npy, test.npy, ...  likewise

`tune` is held out of the training images when the pack is made, and lies at the end of their rows, so that
`train`, `tune` and `train+tune` are slices of one array and each has moments of its own.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tinlab.errors import TinlabError
from tinlab.files import check_regular, is_file, read_json

FORMAT = 2
UNLABELLED = -1
HEADER_BYTES = 128
"""Length of the header of an .npy of images."""
_BLOCK_BYTES = 384 << 10
MOST_NAME_CHARACTERS = 1000
"""Of a class's id, or its words. WordNet's longest have 240."""
LARGEST_SIZE = 1024
"""Side in pixels."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]{0,99}")
"""What a split and its files may be called: no name leads out of the pack's folder."""
BOTH = "train+tune"
_VERIFIED: dict[Path, tuple[str, tuple[int, int, int] | None]] = {}
"""Files whose bytes this process has compared with their digests: the digest, and the file's stamp then."""


def block_rows(image_size: int) -> int:
    """How many images of `image_size` pixels a side are decoded, written and digested as one block.

    A block fits into a CPU's cache, so that its pixels are fetched from memory by none of these.
    """
    return max(1, _BLOCK_BYTES // (3 * image_size**2))


def digest_of_digests(pieces: Iterable[bytes]) -> str:
    """The digest of an .npy of images, in hex, from the xxh3_128 of its header and those of its blocks."""
    import xxhash

    return xxhash.xxh3_128_hexdigest(b"".join(pieces))


@dataclass(frozen=True)
class ClassInfo:
    """One class: its id in the source (a wnid in Tiny ImageNet) and its words for people.

    Either may hold any characters that UTF-8 has; whoever shows them escapes them. Raises ValueError where
    they are no text, longer than MOST_NAME_CHARACTERS, or where the id is empty.
    """

    id: str
    words: str

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a class has an empty name")
        for name in (self.id, self.words):
            if len(name) > MOST_NAME_CHARACTERS:
                raise ValueError(f"the name of a class is longer than {MOST_NAME_CHARACTERS:,} characters")
            if not name.isascii() and any("\ud800" <= c <= "\udfff" for c in name):
                raise ValueError(f"the name of a class, {name[:80]!r}, is not UTF-8")


@dataclass(frozen=True)
class SplitInfo:
    """Where a split's rows lie, and their sums.

    `channel_sum` and `channel_square_sum` are sums over the pixels of the rows, of values in 0..255 and of
    their squares, for red, green and blue, so that the moments of any union of splits are exact.
    """

    file: str
    start: int
    stop: int
    channel_sum: tuple[float, float, float]
    channel_square_sum: tuple[float, float, float]

    @property
    def count(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class PackInfo:
    """What pack.json says.

    `files` gives, for every other file of the pack, its digest in hex: the xxh3_128 of its bytes or, of an
    .npy of images, whose parts are written by several processes, the `digest_of_digests`. `source`
    says where the images came from: `kind` (official_zip, official_folder, class_folders, parquet, rendered),
    `name`, and `content_digest`, the SHA-256 over the sorted lines `SHA256  PATH` of every file read.
    """

    name: str
    image_size: int
    classes: tuple[ClassInfo, ...]
    splits: dict[str, SplitInfo]
    files: dict[str, str]
    source: dict[str, Any]
    notes: tuple[str, ...] = ()
    format: int = FORMAT

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(value: dict[str, Any]) -> PackInfo:
        """Raises KeyError, TypeError or ValueError where `value` is not a pack's description."""
        if value["format"] != FORMAT:
            raise ValueError(f"it has format {value['format']}, and this tinlab reads format {FORMAT}")
        info = PackInfo(
            name=str(value["name"]),
            image_size=int(value["image_size"]),
            classes=tuple(ClassInfo(str(c["id"]), str(c["words"])) for c in value["classes"]),
            splits={
                str(name): SplitInfo(
                    file=str(split["file"]),
                    start=int(split["start"]),
                    stop=int(split["stop"]),
                    channel_sum=triple(split["channel_sum"]),
                    channel_square_sum=triple(split["channel_square_sum"]),
                )
                for name, split in value["splits"].items()
            },
            files={str(name): str(digest) for name, digest in value["files"].items()},
            source=dict(value["source"]),
            notes=tuple(str(note) for note in value.get("notes", ())),
        )
        info.check()
        return info

    def check(self) -> None:
        """Raise ValueError where this describes no pack that there could be."""
        if not 1 <= self.image_size <= LARGEST_SIZE:
            raise ValueError(f"its images have {self.image_size} pixels a side")
        if not self.classes or len({one.id for one in self.classes}) < len(self.classes):
            raise ValueError("it has no classes, or two of one name")
        for name in (*self.splits, *(split.file for split in self.splits.values()), *self.files):
            if not _PLAIN_NAME.fullmatch(name):
                raise ValueError(f"'{name[:80]}' is no name of a split or of a file in the pack's folder")
        for name, split in self.splits.items():
            highest = 255.0 * split.count * self.image_size**2 * (1 + 1e-9)
            if not 0 <= split.start <= split.stop:
                raise ValueError(f"{name} is at rows {split.start} to {split.stop}")
            if not all(0 <= value <= highest for value in split.channel_sum) or not all(
                0 <= value <= 255 * highest for value in split.channel_square_sum
            ):
                raise ValueError(f"the sums of {name} are not those of its pixels")


@dataclass(frozen=True)
class Split:
    """Some rows of a pack: `images` uint8 (N, size, size, 3), `labels` int64 (N,), `names` N strings.

    `images` is memory-mapped: indexing it reads from the disk, or from the page cache.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    pack: Pack = field(repr=False)
    file: str
    start: int

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labelled(self) -> bool:
        return len(self) > 0 and bool((self.labels != UNLABELLED).all())

    def verify_once(self) -> None:
        """Compare the digests of its files, as `Pack.verify_once` does. Raises TinlabError."""
        self.pack.verify_once(self.file)

    @cached_property
    def names(self) -> list[str]:
        path = self.pack.path / f"{self.file}.names.json"
        try:
            every = read_json(path)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise TinlabError(f"{path} cannot be read ({reason}); pack the source again") from error
        names = every[self.start : self.start + len(self)] if isinstance(every, list) else []
        if len(names) < len(self) or not all(isinstance(name, str) for name in names):
            raise TinlabError(f"{path} is damaged: it does not name the images; pack the source again")
        return names


class Pack:
    """An opened pack. `Pack.open(path)` checks what is cheap to check; `verify()` reads every byte.

    `reused` tells the caller of `packing.pack` that the pack was there before.
    """

    def __init__(self, path: Path, info: PackInfo) -> None:
        self.path = path
        self.info = info
        self.reused = False
        self._splits: dict[str, Split] = {}

    @classmethod
    def open(cls, path: str | Path) -> Pack:
        """Open the pack in folder `path`. Raises TinlabError where there is none, or a damaged one."""
        path = Path(path)
        description = path / "pack.json"
        if not is_file(description):
            raise TinlabError(
                f"{path} is not a pack (no pack.json); make one: 'tinlab data pack SOURCE --out {path}'"
            )
        try:
            info = PackInfo.from_json(read_json(description))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise TinlabError(f"{description} cannot be read ({reason}); pack the source again") from error
        pack = cls(path, info)
        for name in info.splits:
            pack.split(name, any_label=True)  # `data audit` lists labels that cannot be
        return pack

    @property
    def digest(self) -> str:
        """Identifies the pack's images, labels and classes; does not depend on where the pack lies."""
        import xxhash

        content = {
            "classes": [[c.id, c.words] for c in self.info.classes],
            "files": dict(sorted(self.info.files.items())),
            "splits": {n: [s.file, s.start, s.stop] for n, s in sorted(self.info.splits.items())},
        }
        return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())

    @property
    def splits(self) -> list[str]:
        return list(self.info.splits)

    def split(self, name: str, *, any_label: bool = False) -> Split:
        """The rows of split `name`, or of `train+tune`. Raises TinlabError where the pack lacks it, where a
        file is damaged and, but for `any_label`, where a label is of no class.

        A split is mapped once, so that it stays as it was even if the pack goes away or is replaced.
        """
        if name not in self._splits:
            self._splits[name] = self._mapped(name)
        split = self._splits[name]
        labels, classes = split.labels, len(self.info.classes)
        if not any_label and len(labels) and not UNLABELLED <= labels.min() <= labels.max() < classes:
            raise TinlabError(
                f"{self.path} is damaged: {split.file}.labels.npy has a label that no class has; pack again"
            )
        return split

    def _mapped(self, name: str) -> Split:
        parts = [self._split_info(part) for part in (("train", "tune") if name == BOTH else (name,))]
        file, start, stop = parts[0].file, parts[0].start, parts[-1].stop
        images = _array(self.path / f"{file}.npy")
        labels = _array(self.path / f"{file}.labels.npy")
        size = self.info.image_size
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (size, size, 3):
            raise TinlabError(
                f"{self.path} is damaged: {file}.npy has shape {images.shape}; pack the source again"
            )
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise TinlabError(
                f"{self.path} is damaged: {file}.labels.npy does not fit {file}.npy; pack the source again"
            )
        if not 0 <= start <= stop <= len(images):
            raise TinlabError(
                f"{self.path} is damaged: pack.json puts {name} at rows {start} to {stop}; pack again"
            )
        labels = np.array(labels[start:stop])  # in memory: mapped, they would change with the file
        return Split(name, images[start:stop], labels, self, file, start)

    def moments(self, name: str = BOTH) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation a channel, float64 (3,), of values scaled to 0..1, over a split."""
        parts = [self._split_info(part) for part in (("train", "tune") if name == BOTH else (name,))]
        pixels = sum(part.count for part in parts) * self.info.image_size**2
        if pixels == 0:
            raise TinlabError(f"{self.path} has no images in {name}")
        mean = np.sum([part.channel_sum for part in parts], axis=0) / pixels
        square = np.sum([part.channel_square_sum for part in parts], axis=0) / pixels
        return mean / 255, np.sqrt(np.maximum(square - mean**2, 0)) / 255

    def verify(self, files: Collection[str] | None = None) -> None:
        """Read every file, or those of these names, and compare its digest. Raises TinlabError that names a
        file that differs."""
        import xxhash

        images = {f"{split.file}.npy" for split in self.info.splits.values()}
        block_bytes = block_rows(self.info.image_size) * 3 * self.info.image_size**2
        for name, expected in self.info.files.items():
            if files is not None and name not in files:
                continue
            try:
                check_regular(self.path / name)
                with (self.path / name).open("rb") as file:
                    if name in images:
                        pieces = [xxhash.xxh3_128_digest(file.read(HEADER_BYTES))]
                        while block := file.read(block_bytes):
                            pieces.append(xxhash.xxh3_128_digest(block))
                        found = digest_of_digests(pieces)
                    else:
                        found = xxhash.xxh3_128_hexdigest(file.read())
            except OSError as error:
                raise TinlabError(
                    f"{self.path / name} cannot be read ({error.strerror}); pack again"
                ) from error
            if found != expected:
                raise TinlabError(
                    f"{self.path / name} is not what was packed (its digest differs); pack again"
                )

    def verify_once(self, part: str | None = None) -> None:
        """`verify`, but for files that this process has read and that are still the same as far as `stamps`
        tell. With `part`, a split's `file`, only what that split is read from.

        A pack of Tiny ImageNet, 1.5 GB, takes half a second once it is in memory, and its val a twentieth of
        one.
        """
        of_part = {f"{part}.{ending}" for ending in ("npy", "labels.npy", "names.json")}
        found = {
            name: (self.info.files[name], stamp)
            for name, stamp in self.stamps().items()
            if part is None or name in of_part
        }
        place = self.path.absolute()
        if unread := [name for name, about in found.items() if _VERIFIED.get(place / name) != about]:
            self.verify(unread)
            _VERIFIED.update({place / name: found[name] for name in unread})

    def stamps(self) -> dict[str, tuple[int, int, int] | None]:
        """File -> its number on the disk, bytes and time of change in ns; None where it is gone."""
        found: dict[str, tuple[int, int, int] | None] = {}
        for name in self.info.files:
            try:
                about = (self.path / name).stat()
                found[name] = (about.st_ino, about.st_size, about.st_mtime_ns)
            except OSError:
                found[name] = None
        return found

    def written_to_since(self, before: dict[str, tuple[int, int, int] | None]) -> str | None:
        """The name of a file that was written to in place since `stamps` gave `before`; None where none was.

        A file that was removed or replaced does not count: whoever has it mapped still sees the old one.
        """
        for name, now in self.stamps().items():
            then = before.get(name)
            if now is not None and then is not None and now[0] == then[0] and now != then:
                return name
        return None

    def _split_info(self, name: str) -> SplitInfo:
        try:
            return self.info.splits[name]
        except KeyError:
            raise TinlabError(
                f"{self.path} has no split '{name}'; it has {', '.join(self.info.splits)}"
            ) from None


def _array(path: Path) -> np.ndarray:
    """The array in .npy file `path`, mapped into memory: no more is read than is there, whatever its header
    says. Raises TinlabError."""
    try:
        check_regular(path)
        if path.stat().st_size == 0:
            raise ValueError("it is empty")
        with np.errstate(over="raise"):
            return np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise TinlabError(
            f"{path} cannot be read ({error.strerror or error}); pack the source again"
        ) from error
    except (
        Exception
    ) as error:  # numpy reads a header as a Python literal, and what it raises then is anybody's guess
        raise TinlabError(f"{path} is damaged ({error}); pack the source again") from error


def triple(values: Any) -> tuple[float, float, float]:
    """Red, green and blue as floats. Raises TypeError or ValueError unless they are three finite numbers."""
    red, green, blue = (float(v) for v in values)
    if not all(map(math.isfinite, (red, green, blue))):
        raise ValueError("a channel's sum is not finite")
    return red, green, blue
