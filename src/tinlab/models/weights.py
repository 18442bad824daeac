"""Weights to start from: a file of tensors, a trained run, or those that torchvision and timm publish.

A file is read as .safetensors, or as .pth, .pt or .bin by torch's reader for tensors alone: nothing in it can
run code. Its tensors go into the network by their names, and every name and shape must fit; only a classifier
of another size keeps its drawn values. What a file may have besides: a wrapper such as {"state_dict": …}
(where it has averaged weights too, those are taken), names that begin with `module.` or `_orig_mod.`, and the
auxiliary classifiers of torchvision's files.

Published files lie where their library keeps them: torchvision's in torch.hub's folder, timm's in the cache
of huggingface_hub. One that is there is used without a network.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import socket
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.files import check_regular
from tinlab.models import zoo
from tinlab.models.fits import reason
from tinlab.models.network import Network

PATIENCE_SECONDS = 10.0
"""How long a server may be silent."""

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model")
"""What tensors are wrapped in, the averaged ones first."""
_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Layers of torchvision's files for GoogLeNet and Inception v3 that networks are built without."""
_OLD_DENSENET = re.compile(r"(\.denselayer\d+\.(?:norm|conv))\.([12])\.")
"""Names in torchvision's files for DenseNets: norm.1 for what has long been called norm1."""
_NOT_IN_THE_WEIGHTS = ("dropout", "final_survival", "zero_last_bn")
"""Options that a network with published weights may have at another value than its own."""
_SHOWN = 4
"""How many names an error lists."""


@dataclass(frozen=True)
class Loaded:
    """What was taken from a file of weights."""

    path: str
    sha256: str
    """Of the whole file, in hex."""
    tensors: int
    """How many parameters and buffers have values from the file."""
    classifier_kept_new: bool
    """Whether the classifier has the values that were drawn for it."""
    fresh_layers: tuple[str, ...]
    """Layers that have the values that were drawn for them, because the recipe says so."""
    fitted: tuple[str, ...]
    """Those tensors whose values are not the file's own: renamed, or resized to the images' side."""
    converted_from: tuple[str, ...]
    """Number formats in the file that are not the network's, such as float16; the rest is exactly equal."""
    left_out: tuple[str, ...]
    """Tensors of the file that the network has no place for: auxiliary classifiers."""


def load_into(model: nn.Module, network: Network, knobs: recipe.Model, *, image_size: int = 64) -> Loaded:
    """Put the weights that `knobs.weights` names into `model`, which `network` built for `knobs` and for
    images of `image_size` pixels a side.

    Raises TinlabError where the file cannot be had or read, where it does not fit, and where a pattern of
    `knobs.fresh_layers` matches no layer; `model` is then as it was.
    """
    path = find_file(network, knobs)
    tensors = read_tensors(path)
    own = model.state_dict()
    tensors, left_out = _without_auxiliary(tensors, own)
    fresh = fresh_names(own, knobs.fresh_layers)
    classifier = _classifier_names(own, network.classifier)
    fitted = _fitted(tensors, own, fresh | classifier, network.classifier, knobs.name, image_size, path)
    given = {name: value for name, value in fitted.items() if not _beneath(name, knobs.fresh_layers)}
    kept_new = _keeps_classifier(given, own, classifier - fresh, knobs.name)
    if kept_new:
        given = {name: value for name, value in given.items() if name not in classifier}
    _all_fit(given, own, fresh | (classifier if kept_new else set()), path, knobs.name)
    with torch.no_grad():
        for name, value in given.items():
            own[name].copy_(value)
    return Loaded(
        path=str(path),
        sha256=sha256_of(path),
        tensors=len(given),
        classifier_kept_new=kept_new or (bool(classifier) and classifier <= fresh),
        fresh_layers=tuple(sorted({name.rpartition(".")[0] or name for name in fresh})),
        fitted=tuple(sorted(name for name, value in given.items() if value is not tensors.get(name))),
        converted_from=tuple(
            sorted({str(v.dtype)[6:] for name, v in given.items() if v.dtype != own[name].dtype})
        ),
        left_out=left_out,
    )


def find_file(network: Network, knobs: recipe.Model) -> Path:
    """The file that `knobs.weights` names, fetched if need be.

    `imagenet` stands for the default weights of torchvision, and for those of timm that the network's tag
    names, or timm's default ones, which may have been trained on more than ImageNet.

    Raises TinlabError where there is none: for a published one that cannot be fetched, it says which file to
    fetch by hand and where to put it.
    """
    assert knobs.weights is not None
    if knobs.weights != "imagenet":
        try:
            return _file_at(Path(knobs.weights).expanduser())
        except (OSError, ValueError, RuntimeError) as error:  # a name too long, with a NUL, or ~NOBODY
            raise TinlabError(
                f"model.weights: '{knobs.weights[:80]}' cannot be looked up ({error}); give a file"
            ) from error
    if knobs.name.startswith("timm:"):
        return _timm_file(knobs.name)
    if network.imagenet is None:
        raise TinlabError(
            f"model.weights: no ImageNet weights fit {knobs.name}; leave weights out, or give a file"
        )
    resolved = network.resolve(knobs)
    for name, value in network.options.items():
        if name not in _NOT_IN_THE_WEIGHTS and getattr(resolved, name) != value:
            raise TinlabError(
                f"model.{name}: the ImageNet weights of {knobs.name} are for {name}={value}, not "
                f"{getattr(resolved, name)}; change it, or leave model.weights out"
            )
    models = zoo.import_torchvision().models
    return _fetched(models.get_model_weights(network.imagenet).DEFAULT.url)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in file `path` by their names, unwrapped, in the memory of the host.

    Raises TinlabError where it is damaged, of another kind, or holds anything that only running code could
    make.
    """
    try:
        check_regular(path)
        path.open("rb").close()
        read: Any = load_file(path) if path.suffix == ".safetensors" else _read_with_torch(path)
    except OSError as error:
        raise TinlabError(
            f"model.weights: {path} cannot be read ({error.strerror or error}); check its permissions"
        ) from error
    # Number formats that safetensors knows and this torch does not are errors of any kind.
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise TinlabError(
            f"model.weights: {path} is no whole .safetensors file ({reason(error)}); fetch or save it again"
        ) from error
    return _without_prefixes(_unwrapped(read, path))


def fresh_names(
    own: Iterable[str], patterns: Iterable[str], *, field: str = "model.fresh_layers"
) -> set[str]:
    """The names in `own` that are, or lie beneath, a layer that one of `patterns` matches.

    Raises TinlabError, which begins with `field`, for a pattern that matches none.
    """
    own = list(own)
    found: set[str] = set()
    for pattern in patterns:
        matched = {name for name in own if _beneath(name, (pattern,))}
        if not matched:
            layers = list(dict.fromkeys(name.rpartition(".")[0] or name for name in own))
            raise TinlabError(
                f"{field}: '{pattern}' matches no layer with weights; they are called {_some(layers)}"
            )
        found |= matched
    return found


def sha256_of(path: Path) -> str:
    """SHA-256 of the file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_at(path: Path) -> Path:
    """`path`, or the newest weights in the run folder or checkpoint that `path` is: those that were measured,
    which is the moving average where there is one."""
    if not path.exists():
        raise TinlabError(f"model.weights: there is no {path}; give 'imagenet', a file, or a run folder")
    if path.is_dir():
        folders = [
            place
            for place in (path / "checkpoints").glob("step-*")
            if place.is_dir() and place.name.removeprefix("step-").isdecimal()
        ]
        place = max(folders, key=lambda one: int(one.name.removeprefix("step-")), default=path)
        averaged = place / "ema.safetensors"
        path = averaged if averaged.is_file() else place / "model.safetensors"
        if not path.is_file():
            raise TinlabError(
                f"model.weights: {path.parent} is no run with a checkpoint, nor one of its checkpoints; "
                "give one, or a file"
            )
    if path.suffix not in (".safetensors", ".pth", ".pt", ".bin"):
        raise TinlabError(
            f"model.weights: {path} is of an unknown kind; give a .safetensors, .pth, .pt or .bin file"
        )
    return path


def _read_with_torch(path: Path) -> Any:
    try:
        # Only files in torch's present format, a zip, can be mapped into memory.
        return torch.load(path, weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    # A damaged file makes torch's reader raise almost anything.
    except Exception as error:
        if found := re.search(r"GLOBAL (\S+) was not", str(error)):
            raise TinlabError(
                f"model.weights: {path} holds Python objects ({found[1]}) besides tensors, which are not "
                "read since making them can run code; save the network's state_dict alone"
            ) from error
        raise TinlabError(
            f"model.weights: {path} is damaged, or holds something else than tensors; fetch or save it again"
        ) from error


def _unwrapped(read: Any, path: Path) -> dict[str, Tensor]:
    while isinstance(read, Mapping):
        inner = next((key for key in _WRAPPERS if isinstance(read.get(key), Mapping) and read[key]), None)
        if inner is None:
            break
        read = read[inner]
    if not isinstance(read, Mapping) or not read:
        kind = f"a {type(read).__name__}" if read or not isinstance(read, Mapping) else "nothing"
        raise TinlabError(
            f"model.weights: {path} holds {kind}, and a network's tensors by their names are needed; save "
            "its state_dict"
        )
    if others := [
        str(name)
        for name, value in read.items()
        if not isinstance(name, str) or not isinstance(value, Tensor) or not _is_plain(value)
    ]:
        raise TinlabError(
            f"model.weights: {path} holds more than tensors by their names ({_some(others)}); save the "
            f"network's state_dict alone, or in one of {', '.join(_WRAPPERS)}"
        )
    return dict(read)


def _is_plain(tensor: Tensor) -> bool:
    """Whether its values lie in memory, one after the other: neither sparse, nor quantized, nor left out."""
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta


def _without_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _without_auxiliary(
    tensors: dict[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    left_out = tuple(name for name in tensors if name.startswith(_AUXILIARY) and name not in own)
    return {name: value for name, value in tensors.items() if name not in left_out}, left_out


def _classifier_names(own: Iterable[str], classifier: str) -> set[str]:
    """The classifier's tensors; a distilled network of timm's has a second classifier, NAME_dist."""
    return {name for name in own if name.startswith((f"{classifier}.", f"{classifier}_dist."))}


def _beneath(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of `patterns` matches the tensor `name`, or a layer that holds it."""
    parts = name.split(".")
    places = [".".join(parts[:end]) for end in range(1, len(parts) + 1)]
    return any(fnmatch.fnmatchcase(place, pattern) for pattern in patterns for place in places)


def _keeps_classifier(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], classifier: set[str], name: str
) -> bool:
    if any(place in given and given[place].shape != own[place].shape for place in classifier):
        return True
    return bool(classifier) and not (classifier & given.keys()) and _without_classifier(name)


def _without_classifier(name: str) -> bool:
    """Whether the weights that timm has for `name` are those of a network without a classifier."""
    return name.startswith("timm:") and _timm_configuration(name).num_classes == 0


def _fitted(
    tensors: dict[str, Tensor],
    own: Mapping[str, Tensor],
    free: set[str],
    classifier: str,
    name: str,
    image_size: int,
    path: Path,
) -> dict[str, Tensor]:
    """`tensors` under the names and with the sizes that the network `name` has today, as far as its library
    knows how. The sizes of `free` may differ."""
    strange = [place for place in tensors if place not in own]
    resized = [
        place
        for place, value in tensors.items()
        if place in own and place not in free and value.shape != own[place].shape
    ]
    if not strange and not resized:
        return tensors
    if name.startswith("timm:"):
        last = tensors.get(f"{classifier}.weight")
        classes = len(last) if last is not None else _timm_configuration(name).num_classes
        return _fitted_by_timm(name, tensors, classes, image_size, path)
    if name.startswith("torchvision:densenet"):
        return {_OLD_DENSENET.sub(r"\1\2.", place): value for place, value in tensors.items()}
    if name.startswith("torchvision:vit_") and resized == ["encoder.pos_embedding"]:
        return _resized_by_torchvision(tensors, own, image_size, path)
    return tensors


def _fitted_by_timm(
    name: str, tensors: dict[str, Tensor], classes: int, image_size: int, path: Path
) -> dict[str, Tensor]:
    """timm knows the names that its networks' weights had elsewhere, and resizes position embeddings.
    `classes` is how many the file's classifier has."""
    try:
        with torch.random.fork_rng(devices=[]):
            model = zoo.create_timm(
                name.partition(":")[2],
                classes,
                image_size,
                pretrained=True,
                pretrained_cfg_overlay={"state_dict": tensors, "num_classes": classes},
            )
    # Each network has code of its own for this, which may trip over a strange file anywhere.
    except Exception as error:
        raise TinlabError(
            f"model.weights: timm cannot fit {path} to {name} ({_short(error)}); give a file of this network"
        ) from error
    return {
        place: tensors[place] if place in tensors and _same(tensors[place], value) else value
        for place, value in model.state_dict().items()
    }


def _resized_by_torchvision(
    tensors: dict[str, Tensor], own: Mapping[str, Tensor], image_size: int, path: Path
) -> dict[str, Tensor]:
    """torchvision's vision transformers: the position embeddings, interpolated to the number of patches."""
    zoo.import_torchvision()
    from torchvision.models.vision_transformer import interpolate_embeddings

    patch = own["conv_proj.weight"].shape[-1]
    try:
        return dict(interpolate_embeddings(image_size, patch, dict(tensors)))
    except (RuntimeError, ValueError) as error:
        raise TinlabError(
            f"model.weights: the position embeddings in {path} cannot be resized to "
            f"{image_size}x{image_size} images ({reason(error)}); give a file of this network"
        ) from error


def _all_fit(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], free: set[str], path: Path, name: str
) -> None:
    """Raise TinlabError where names, shapes or kinds of numbers differ."""
    wrong = []
    missing = [
        place
        for place in own
        # Files from before PyTorch 0.4.1 do not count their batches, and nothing here uses the count.
        if place not in given and place not in free and not place.endswith(".num_batches_tracked")
    ]
    if missing:
        wrong.append(f"it lacks {_some(missing)}")
    if unknown := [place for place in given if place not in own]:
        wrong.append(f"the network lacks {_some(unknown)}")
    both = [place for place in given if place in own]
    if shapes := [
        f"{place} is {tuple(given[place].shape)} in the file and {tuple(own[place].shape)} in the network"
        for place in both
        if given[place].shape != own[place].shape
    ]:
        wrong.append(_some(shapes))
    if kinds := [
        f"{place} is {str(given[place].dtype)[6:]}, not {str(own[place].dtype)[6:]}"
        for place in both
        if given[place].is_floating_point() != own[place].is_floating_point()
    ]:
        wrong.append(_some(kinds))
    if wrong:
        raise TinlabError(
            f"model.weights: {path} does not fit {name}: {'; '.join(wrong)}; give a file of this network, or "
            "name layers to leave as they were drawn in model.fresh_layers"
        )


def _timm_configuration(name: str) -> Any:
    return zoo.import_timm().models.get_pretrained_cfg(name.partition(":")[2])


def _timm_file(name: str) -> Path:
    configuration = _timm_configuration(name)
    if configuration is None or not configuration.has_weights:
        raise TinlabError(f"model.weights: timm has no weights for {name}; leave weights out, or give a file")
    if configuration.hf_hub_id:
        return _from_hub(configuration.hf_hub_id, configuration.hf_hub_filename or "pytorch_model.bin")
    url = configuration.url
    return _fetched(url if isinstance(url, str) else url[0])


def _fetched(url: str) -> Path:
    """The file at `url` in torch.hub's folder of checkpoints, fetched if it is not there."""
    name = unquote(urlsplit(url).path).rpartition("/")[2]
    path = Path(torch.hub.get_dir()).expanduser() / "checkpoints" / name
    # By torch.hub's custom a name ends in the first digits of the file's SHA-256.
    digits = re.search(r"-([0-9a-f]{8,})\.\w+$", name)
    if path.is_file():
        if digits and not sha256_of(path).startswith(digits[1]):
            raise TinlabError(
                f"model.weights: {path} is damaged (its SHA-256 does not begin with {digits[1]}); remove it"
            )
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _patience():
            torch.hub.download_url_to_file(url, str(path), digits[1] if digits else None, progress=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise TinlabError(
            f"model.weights: {url} cannot be fetched ({_short(error)}); fetch it by other means and put "
            f"it at {path}"
        ) from error
    return path


def _from_hub(repository: str, filename: str) -> Path:
    """A file of a repository on the hub that huggingface_hub asks, from its cache or fetched; rather its
    .safetensors form."""
    import huggingface_hub as hub

    repository, _, revision = repository.partition("@")
    safe = filename.replace("pytorch_model.bin", "model.safetensors")
    candidates = list(dict.fromkeys((safe, filename)))
    for candidate in candidates:
        cached = hub.try_to_load_from_cache(repository, candidate, revision=revision or None)
        if isinstance(cached, str):
            return Path(cached)
    address = hub.hf_hub_url(repository, candidates[0], revision=revision or None)
    try:
        for candidate in candidates:
            url = hub.hf_hub_url(repository, candidate, revision=revision or None)
            try:
                # One question without repeats: fetching itself asks for most of a minute before it gives up.
                hub.get_hf_file_metadata(url, timeout=PATIENCE_SECONDS)
            except hub.errors.EntryNotFoundError:
                continue
            return Path(hub.hf_hub_download(repository, candidate, revision=revision or None))
        raise FileNotFoundError("it is not there")
    # What its HTTP client raises has no name that every version of huggingface_hub shares.
    except Exception as error:
        raise TinlabError(
            f"model.weights: {address} cannot be fetched ({_short(error)}); fetch it by other means and give "
            f"its path: --set model.weights=PATH/{candidates[0]}"
        ) from error


@contextmanager
def _patience() -> Iterator[None]:
    """torch.hub sets no limit of its own to how long it waits for an answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.to(b.dtype), b)


def _short(error: Exception) -> str:
    said = str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)
    said = " ".join(said.split()) or type(error).__name__
    return said if len(said) <= 300 else said[:300] + "…"


def _some(names: list[str]) -> str:
    """The first few, and how many more."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
