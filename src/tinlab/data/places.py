"""Where data lies when nobody says: --data, then $TINLAB_DATA, then the cache folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from tinlab.data.pack import Pack
from tinlab.errors import TinlabError
from tinlab.files import read_json

ARCHIVE = "tiny-imagenet-200.zip"
FOLDER = "tiny-imagenet-200"

DEFAULTS = {"image_size": 64, "tune_fraction": 0.1, "seed": 0}
"""What 'tinlab data pack' packs with unless told otherwise, as pack.json says it."""

HOW_TO_GET_DATA = (
    "no data found: name a data set or a pack with --data, set TINLAB_DATA, or run 'tinlab data download'; "
    "without a network, 'tinlab data render FOLDER' draws a stand-in set"
)


def cache_folder() -> Path:
    """Where downloads and packs are kept: $TINLAB_CACHE, or the user's cache folder."""
    if stated := os.environ.get("TINLAB_CACHE"):
        return Path(stated).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("tinlab")


def find_source(stated: str | Path | None = None) -> Path | None:
    """The data set or pack that `stated` names, or else $TINLAB_DATA, or else what the cache folder holds.

    A folder may hold Tiny ImageNet's archive or folder, rather than be a data set. None where nothing is
    stated and nothing is cached. Raises TinlabError where a stated place does not exist, and where the cache
    has several packs of which none was made with the default settings.
    """
    if stated is not None and not str(stated):
        raise TinlabError("--data is empty; name a pack or a data set, or leave it out")
    for origin, place in (("--data", stated), ("TINLAB_DATA", os.environ.get("TINLAB_DATA"))):
        if not place:
            continue
        try:
            path = Path(place).expanduser()
            path.exists()
        except (OSError, RuntimeError) as error:  # too long, or ~NOBODY
            raise TinlabError(
                f"{origin}: '{place}' cannot be looked up ({error}); name a data set"
            ) from error
        cached = cache_folder() / "packs" / path.name
        if not path.exists() and path.name == str(place) and (cached / "pack.json").is_file():
            return cached
        if not path.exists():
            raise TinlabError(
                f"{origin}: there is no {path}; name a pack, a data set, or a cached pack's name"
            )
        return _inside(path) or path
    return _cached_pack() or _inside(cache_folder())


def _cached_pack() -> Path | None:
    """The cached pack of Tiny ImageNet with the default settings, or else the only one there is."""
    packs = [path.parent for path in sorted((cache_folder() / "packs").glob(f"{FOLDER}*/pack.json"))]
    usual = [path for path in packs if _has_default_settings(path)]
    if len(packs) > 1 and not usual:
        raise TinlabError(
            f"{cache_folder() / 'packs'} has several packs, none with the default settings "
            f"({', '.join(path.name for path in packs)}); name one of them with --data"
        )
    return next(iter(usual or packs), None)


def _has_default_settings(pack: Path) -> bool:
    """Whether pack.json says that this is a whole data set as 'tinlab data pack SOURCE' packs it."""
    try:
        source = read_json(pack / "pack.json")["source"]
        settings = source["settings"]
        return "subset_of" not in source and all(settings[name] == value for name, value in DEFAULTS.items())
    except (OSError, ValueError, KeyError, TypeError):  # damaged: opening it says how
        return False


def default_pack_place(source: Path, image_size: int) -> Path:
    """Where the pack of `source` is kept when nobody says: in the cache, named after the source.

    The name holds a digest of the source's absolute path, so that two sets of one name do not collide.
    """
    stem = source.name.removesuffix(".zip").removesuffix(".parquet") or "data"
    place = hashlib.sha256(str(source.resolve()).encode()).hexdigest()[:8]
    return cache_folder() / "packs" / f"{stem}-{image_size}-{place}"


def open_data(
    stated: str | Path | None = None,
    *,
    image_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Pack:
    """The pack to work on; a data set that is not packed yet is packed into the cache first.

    Raises TinlabError where there is none, with how to get one.
    """
    found = find_source(stated)
    if found is None:
        raise TinlabError(HOW_TO_GET_DATA)
    if (found / "pack.json").is_file():
        return Pack.open(found)
    from tinlab.data.packing import pack

    return pack(found, default_pack_place(found, image_size), image_size=image_size, progress=progress)


def _inside(folder: Path) -> Path | None:
    """Tiny ImageNet inside `folder`, where `folder` only holds it."""
    if (folder / ARCHIVE).is_file():
        return folder / ARCHIVE
    if (folder / FOLDER / "wnids.txt").is_file():
        return folder / FOLDER
    return None
