"""Files of weights: which one a recipe names, fetched if need be, and the tensors in it.

A file is read as .safetensors, or as .pth, .pt or .bin by torch's reader for tensors alone: nothing in it can
run code. It may have a wrapper such as {"state_dict": …} (where it has averaged weights too, those are
taken), and names that begin with `module.` or `_orig_mod.`.

Published files lie where their library keeps them: torchvision's in torch.hub's folder, timm's in the cache
of huggingface_hub. One that is there is used without a network.
"""

from __future__ import annotations

import hashlib
import re
import socket
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

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
_NOT_IN_THE_WEIGHTS = ("dropout", "final_survival", "zero_last_bn")
"""Options that a network with published weights may have at another value than its own."""
_SHOWN = 4
"""How many names an error lists."""


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
            f"model.weights: {path} holds more than tensors by their names ({some(others)}); save the "
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


def _timm_file(name: str) -> Path:
    configuration = zoo.timm_configuration(name)
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
            f"model.weights: {url} cannot be fetched ({short(error)}); fetch it by other means and put "
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
            f"model.weights: {address} cannot be fetched ({short(error)}); fetch it by other means and give "
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


def short(error: Exception) -> str:
    """What `error` says was the reason, on one line of at most 300 characters."""
    said = str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)
    said = " ".join(said.split()) or type(error).__name__
    return said if len(said) <= 300 else said[:300] + "…"


def some(names: list[str]) -> str:
    """The first few, and how many more."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
