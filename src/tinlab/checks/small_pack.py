"""A few images of a pack, as a pack in which they are all there is: trained on, and measured on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import xxhash

from tinlab.data.pack import Pack, PackInfo, SplitInfo, block_rows, digest_of_digests, triple


def small_pack(pack: Pack, split_name: str, rows: np.ndarray, folder: Path) -> Pack:
    """Write the `rows` of a split of `pack` into `folder`, as a pack whose train, tune and val they all are.

    Its classes are those of `pack`, and its moments those of the whole split, so that the images reach a
    network as they would in training.
    """
    split = pack.split(split_name)
    split.verify_once()  # the new digests would vouch for whatever is read
    images, labels = np.array(split.images[rows]), split.labels[rows]
    folder.mkdir(parents=True)
    np.save(folder / "few.npy", images)
    np.save(folder / "few.labels.npy", labels)
    names = json.dumps([split.names[row] for row in rows])
    (folder / "few.names.json").write_text(names, encoding="utf-8")

    mean, std = pack.moments(split_name)
    pixels = len(rows) * pack.info.image_size**2
    sums = 255 * mean * pixels
    squares = 255**2 * (std**2 + mean**2) * pixels
    info = SplitInfo("few", 0, len(rows), triple(sums), triple(squares))
    place = (folder / "few.npy").read_bytes()
    header, length = len(place) - images.nbytes, block_rows(pack.info.image_size) * images[0].nbytes
    blocks = [place[:header], *(place[at : at + length] for at in range(header, len(place), length))]
    described = PackInfo(
        name=f"{pack.info.name}, {len(rows)} images",
        image_size=pack.info.image_size,
        classes=pack.info.classes,
        splits=dict.fromkeys(("train", "tune", "val"), info),
        files={
            "few.npy": digest_of_digests(map(xxhash.xxh3_128_digest, blocks)),
            **{
                name: xxhash.xxh3_128_hexdigest((folder / name).read_bytes())
                for name in ("few.labels.npy", "few.names.json")
            },
        },
        source={**pack.info.source, "rows_of": pack.digest},
    )
    (folder / "pack.json").write_text(json.dumps(described.to_json()), encoding="utf-8")
    return Pack.open(folder)
