"""A rendered stand-in for Tiny ImageNet: toys on table tops, for work without a network.

The folder has the official layout (train/, val/, test/, wnids.txt, words.txt), so whatever reads the real set
reads this one. A class is a shape with a texture ("striped teal hexagon"); its palette is a hint, shared with
other classes and sometimes left, so that neither shape, texture nor colour is enough. Pose, light, clutter,
occlusion, blur and noise differ from image to image.

Every image is a pure function of (seed, split, class, index): its pixels do not depend on how many classes or
images are asked for, nor on the number of workers. All drawing is numpy on batches, in float32.

How a sprite is drawn: each shape is a table of signed distances to its outline. A pose maps pixels to the
shape's own coordinates, the table gives the distance there, and the distance gives the anti-aliased edge, the
rounded rim that catches light, and (read at a shifted place) the soft shadow.

catalogue.py  the classes
dice.py       random numbers by image
tables.py     tables read at fractional places: hills, grain
outlines.py   the shapes' signed distances
surfaces.py   textures and colours
picture.py    a batch of pictures
folder.py     all of a set, as files
"""

from __future__ import annotations

from tinlab.data.shapes.catalogue import MOST_CLASSES, SHAPES, TEXTURES, ShapeClass, catalogue
from tinlab.data.shapes.folder import MARKER, render
from tinlab.data.shapes.picture import Drawn, draw

__all__ = [
    "MARKER",
    "MOST_CLASSES",
    "SHAPES",
    "TEXTURES",
    "Drawn",
    "ShapeClass",
    "catalogue",
    "draw",
    "render",
]
