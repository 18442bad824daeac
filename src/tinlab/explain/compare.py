"""Several networks on the same images: what each sees in them, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from tinlab.classifier import Classifier
from tinlab.data.given import Guess, squares
from tinlab.data.pack import UNLABELLED, ClassInfo, Pack, Split
from tinlab.data.words import find_class, short_names
from tinlab.errors import TinlabError
from tinlab.evaluation.predict import normalised
from tinlab.explain.attribution import METHODS, at_size, find_methods
from tinlab.explain.drawing import Part, Picture, Row, enlarge, shade, sheet

Target = Literal["true", "predicted"]


@dataclass(frozen=True)
class Chosen:
    """An image to explain: `pixels` uint8 (H, W, 3) or the path of a file, `name` for people, and its true
    class where that is known."""

    name: str
    image: np.ndarray | Path
    true: ClassInfo | None = None


@dataclass(frozen=True)
class Explanation:
    """What one network makes of one image.

    `guess` is its likeliest class; `target` the class whose score is explained, with its probability.
    `pictures` has, for each method, its map as uint8 (H, W, 3); `refusals` why a method does not apply.
    """

    image: np.ndarray
    guess: Guess
    target: Guess
    target_is: str
    pictures: dict[str, np.ndarray]
    refusals: dict[str, str]
    alts: dict[str, str]


def inputs_of(classifier: Classifier, images: Sequence[np.ndarray | Path]) -> tuple[np.ndarray, Tensor]:
    """The images as packs hold them, uint8 (B, H, W, 3), and as the network gets them, float32 (B, 3, size,
    size).

    Raises TinlabError for what is no image.
    """
    shown = classifier.run.preprocessing
    arrays = np.stack(
        [
            image
            if isinstance(image, np.ndarray) and image.shape == (shown.image_size, shown.image_size, 3)
            else squares([image], shown.image_size)[0]
            for image in images
        ]
    )
    return arrays, normalised(shown, torch.from_numpy(arrays))


def from_split(
    split: Split,
    *,
    images: int = 4,
    seed: int = 0,
    indices: Sequence[int] = (),
) -> list[Chosen]:
    """`images` images drawn with `seed`, in the split's order, or those in rows `indices`.

    Raises TinlabError where the split has no such row, or is damaged.
    """
    if images < 1:
        raise TinlabError(f"images is {images}; give 1 or more")
    if not len(split):
        raise TinlabError(f"{split.pack.path} has no images in {split.name}; choose another split")
    split.verify_once()
    for index in indices:
        if not 0 <= index < len(split):
            raise TinlabError(f"index: {split.name} has rows 0 to {len(split) - 1}, and no row {index}")
    rows = list(indices) or sorted(np.random.default_rng(seed).permutation(len(split))[:images].tolist())
    classes = split.pack.info.classes
    return [
        Chosen(
            name=f"{split.name} {row}",
            image=np.array(split.images[row]),
            true=classes[split.labels[row]] if split.labels[row] != UNLABELLED else None,
        )
        for row in rows
    ]


def from_name(name: str, open_pack: Callable[[], Pack]) -> Chosen:
    """The image in file `name`: one on the disk, or else the pack's image of that name, such as
    test_8715.JPEG, or train/n01443537/images/n01443537_0.JPEG, as the pack has it. `open_pack` gives the pack
    where it is needed. Raises TinlabError where there is none, and where several are called so."""
    path = Path(name)
    with suppress(RuntimeError):  # the name begins with a ~ and is nobody's home
        path = path if path.is_file() else path.expanduser()
    if path.is_file():
        return Chosen(name=path.name, image=path)
    pack = open_pack()
    splits = [pack.split(part) for part in pack.splits]
    stored = [(split, row, whole) for split in splits for row, whole in enumerate(split.names)]
    found = [one for one in stored if one[2] == name]
    found = found or [one for one in stored if PurePosixPath(one[2]).name == name]
    if not found:
        raise TinlabError(f"file: {name} is neither a file nor the name of an image in {pack.path}")
    if len(found) > 1:
        listed = ", ".join(f"{whole} ({split.name})" for split, _, whole in found[:5])
        raise TinlabError(
            f"file: {len(found):,} images in {pack.path} are called {name}: {listed}"
            f"{', …' if len(found) > 5 else ''}; name one as it stands there, or by --split and --index"
        )
    ((split, row, _),) = found
    (chosen,) = from_split(split, indices=[row])
    return Chosen(PurePosixPath(name).name, chosen.image, chosen.true)


def explain(
    classifier: Classifier,
    chosen: Sequence[Chosen],
    *,
    methods: Iterable[str] = tuple(METHODS),
    target: Target | None = None,
    class_name: str | None = None,
) -> list[Explanation]:
    """What the network makes of each image, with a map for each method.

    The score explained is that of the true class, or where that is unknown of the predicted one; `target`
    asks for one of both, and `class_name` for a class by its id or words. Raises TinlabError for unknown
    names, and where the true class is asked for and not known.
    """
    wanted = find_methods(methods)
    arrays, inputs = inputs_of(classifier, [one.image for one in chosen])
    probabilities = classifier.probabilities(arrays)  # (B, C)
    targets, kinds = targets_of(classifier, chosen, probabilities, target, class_name)
    maps: dict[str, np.ndarray] = {}
    refusals: dict[str, str] = {}
    for name, method in wanted.items():
        try:
            of_inputs = method.attribute(classifier.model, inputs, torch.tensor(targets))
            maps[name] = at_size(of_inputs, arrays.shape[1]).numpy()
        except TinlabError as error:
            refusals[name] = str(error)
    names = short_names(classifier.classes)

    def guess(row: int, number: int) -> Guess:
        return Guess(classifier.classes[number].id, names[number], float(probabilities[row, number]))

    found = []
    for row, one in enumerate(chosen):
        explained = guess(row, targets[row])
        found.append(
            Explanation(
                image=arrays[row],
                guess=guess(row, int(probabilities[row].argmax())),
                target=explained,
                target_is=kinds[row],
                pictures={n: shade(wanted[n].kind, maps[n][row], arrays[row]) for n in maps},
                refusals=refusals,
                alts={
                    n: f"{wanted[n].title} of {one.name} for '{explained.words}'; {wanted[n].meaning}"
                    for n in maps
                },
            )
        )
    return found


def compare(
    classifiers: Sequence[Classifier],
    chosen: Sequence[Chosen],
    *,
    methods: Sequence[str] = tuple(METHODS),
    target: Target | None = None,
    class_name: str | None = None,
) -> Picture:
    """A sheet with a part for each image and a row for each network: its guess, the image and the maps.

    Of one network, the images are the rows.

    Raises TinlabError as `explain` does.
    """
    if not classifiers or not chosen:
        raise TinlabError("there is nothing to explain; give at least one run and one image")
    wanted = find_methods(methods)
    columns = [
        explain(classifier, chosen, methods=methods, target=target, class_name=class_name)
        for classifier in classifiers
    ]
    labels = run_labels(classifiers)
    header = Row((), (None, *(None for _ in wanted)), ("image", *(m.title for m in wanted.values())))
    how = [f"{m.title}: {m.meaning}" for m in wanted.values()]
    notes = Part("How to read the maps", notes=(*how, "Each map has a scale of its own."))
    blocks: list[tuple[str, list[Row]]] = []
    told = []
    for n, one in enumerate(chosen):
        true = short_name(one.true) if one.true else "class not known"
        rows = []
        for label, column in zip(labels, columns, strict=True):
            found = column[n]
            made = [None if name in found.refusals else enlarge(found.pictures[name]) for name in wanted]
            reasons = ["does not apply to this network" if name in found.refusals else "" for name in wanted]
            beside = label if len(labels) > 1 else f"{one.name}: {true}"
            rows.append(Row([beside, *_verdict(found, one)], (enlarge(found.image), *made), ("", *reasons)))
            told.append(f"{label} takes {one.name} for {_sure(found.guess)}")
        blocks.append((f"{one.name}: {true}", rows))
    if len(labels) == 1:
        title = f"What {labels[0]} looks at"
        parts = [notes, Part("Images", [header, *(row for _, rows in blocks for row in rows)])]
    else:
        title = "What the networks look at"
        parts = [notes, *(Part(heading, [header, *rows]) for heading, rows in blocks)]
    listed = ", ".join(m.title for m in wanted.values())
    return Picture(sheet(title, parts), f"Maps of {listed}, each image beside its own. {'; '.join(told)}.")


def run_labels(classifiers: Sequence[Classifier]) -> list[str]:
    """Recipe and seed of each run; where that does not tell them apart when it began, or else its folder's
    name."""
    short = [f"{c.run.recipe.name}, seed {c.run.seed}" for c in classifiers]
    begun = [
        f"{text}, {c.run.started_at[:16].replace('T', ' ')}"
        for text, c in zip(short, classifiers, strict=True)
    ]
    folders = [c.run.path for c in classifiers]
    labels = []
    for text, when, folder in zip(short, begun, folders, strict=True):
        alike = {other for other, one in zip(folders, begun, strict=True) if one == when}
        if short.count(text) == 1:
            labels.append(text)
        elif len(alike) == 1:
            labels.append(when)
        else:
            named = [other.name for other in alike]
            labels.append(folder.name if named.count(folder.name) == 1 else str(folder))
    return labels


def short_name(info: ClassInfo) -> str:
    """The first of the class's words."""
    return info.words.split(",")[0].strip() or info.id


def _verdict(found: Explanation, one: Chosen) -> list[str]:
    judged = "" if one.true is None else ", right" if found.guess.id == one.true.id else ", wrong"
    lines = [f"{_sure(found.guess)}{judged}"]
    if found.target.id != found.guess.id:
        lines.append(f"explained: {found.target_is} class {_sure(found.target)}")
    return lines


def _sure(guess: Guess) -> str:
    return f"{guess.words} {percent(guess.probability)}"


def percent(share: float) -> str:
    """0..1 in percent, to what a reader needs of it."""
    return (
        f"{100 * share:.0f}%" if share >= 0.01 else f"{100 * share:.1f}%" if share >= 1e-3 else "below 0.1%"
    )


def targets_of(
    classifier: Classifier,
    chosen: Sequence[Chosen],
    probabilities: np.ndarray,
    target: Target | None,
    class_name: str | None,
) -> tuple[list[int], list[str]]:
    """The class that is explained of each image, and whether it is the `true`, `predicted` or `named` one.

    `probabilities` (B, C). Raises TinlabError as `explain` does.
    """
    if class_name is not None:
        if target is not None:
            raise TinlabError("a class and a target are both named; give one of them")
        number = find_class(classifier.classes, class_name)
        return [number] * len(chosen), ["named"] * len(chosen)
    if target not in (None, "true", "predicted"):
        raise TinlabError(f"target is '{target}'; give true or predicted")
    number_of = {c.id: n for n, c in enumerate(classifier.classes)}
    targets, kinds = [], []
    for row, one in enumerate(chosen):
        known = one.true is not None and one.true.id in number_of
        if target == "true" and not known:
            why = "its class is not known" if one.true is None else f"{classifier.run.path} has no such class"
            raise TinlabError(f"target: {one.name} has no true class ({why}); give --target predicted")
        if known and target != "predicted":
            assert one.true is not None
            targets.append(number_of[one.true.id])
            kinds.append("true")
        else:
            targets.append(int(probabilities[row].argmax()))
            kinds.append("predicted")
    return targets, kinds
