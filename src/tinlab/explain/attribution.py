"""Which pixels a class's score rests on.

Every function takes (model, inputs, targets): the network, images as it gets them, float32 (B, 3, H, W), and
the classes whose scores are explained, int64 (B,). It returns float32 maps on the CPU, (B, H, W), or
(B, 3, H, W) where a pixel's red, green and blue have values of their own. The score is the one before softmax
(Simonyan et al.: an unnormalised score does not rise because that of another class falls).

The network is explained as it is in evaluation, eager and in float32, and left as it was found. The rest of a
batch changes nothing for an image beyond rounding, and noise comes from a seed. Zero in `inputs` is the
training images' mean: that is the baseline where a method needs one.

Captum computes the gradients, SmoothGrad, integrated gradients and occlusion. Guided backpropagation is ours,
since Captum's goes by ReLU modules, each used once and none in place: here the functions themselves are
replaced while they run. Grad-CAM is ours since Captum's asks for channels first, which the last maps of Swin,
ConvNeXt or a vision transformer are not. Both are tested against Captum's where that applies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tinlab.errors import TinlabError
from tinlab.explain.layers import at_rest, device_of, feature_map

ROWS_AT_ONCE = 32
"""Images a pass where a method looks at many variants of one; about 1 GB in a ResNet-18 with a small stem."""
SMOOTHGRAD_SAMPLES = 24
SMOOTHGRAD_NOISE = 0.15
"""Standard deviation of the noise over the range of the image's values (Smilkov et al.: 0.1 to 0.2)."""
INTEGRATION_STEPS = 48


def gradient(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """How the score changes with each value: (B, 3, H, W), signed."""
    from captum.attr import Saliency

    with at_rest(model) as eager:
        x, classes = _ready(eager, inputs, targets)
        return _given_back(Saliency(eager).attribute(x, target=classes, abs=False))


def saliency(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The largest absolute gradient of the three colours: (B, H, W).

    Simonyan, Vedaldi and Zisserman, "Deep Inside Convolutional Networks", 2014, section 3.1.
    """
    return gradient(model, inputs, targets).abs().amax(1)


def saliency_positive(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The gradient where it is above zero, else zero: (B, 3, H, W). More of that colour raises the score."""
    return gradient(model, inputs, targets).clamp(min=0)


def saliency_negative(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The gradient's size where it is below zero, else zero: (B, 3, H, W). Less of that colour raises the
    score."""
    return (-gradient(model, inputs, targets)).clamp(min=0)


def smoothgrad(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    samples: int = SMOOTHGRAD_SAMPLES,
    noise: float = SMOOTHGRAD_NOISE,
    seed: int = 0,
) -> Tensor:
    """Saliency of the mean gradient over `samples` noisy copies of the image: (B, H, W).

    The noise's standard deviation is `noise` times the range of the image's values; every image gets the same
    draws, which depend on `seed`, the number of samples and the kind of device. Smilkov et al., "SmoothGrad:
    removing noise by adding noise", 2017.
    """
    from captum.attr import NoiseTunnel, Saliency

    if samples < 1 or noise < 0:
        raise TinlabError(f"samples is {samples} and noise {noise:g}; give 1 or more samples and 0 or more")
    made = []
    with at_rest(model) as eager, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        x, classes = _ready(eager, inputs, targets)
        for one, target in zip(x.split(1), classes.split(1), strict=True):
            torch.manual_seed(seed)
            found = NoiseTunnel(Saliency(eager)).attribute(
                one.detach().requires_grad_(),
                nt_samples=samples,
                nt_samples_batch_size=min(samples, ROWS_AT_ONCE),
                stdevs=noise * float(one.detach().max() - one.detach().min()),
                target=target,
                abs=False,
            )
            made.append(_given_back(found))
    return torch.cat(made).abs().amax(1)


def integrated_gradients(
    model: nn.Module, inputs: Tensor, targets: Tensor, *, steps: int = INTEGRATION_STEPS
) -> Tensor:
    """What each value adds to the score on the way from the mean image to this one: (B, 3, H, W), signed.

    Its sum over an image is the score less that of the mean image, up to the error of `steps` steps of
    Gauss-Legendre (`completeness_error`). Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep
    Networks", ICML 2017.
    """
    from captum.attr import IntegratedGradients

    if steps < 1:
        raise TinlabError(f"steps is {steps}; give 1 or more")
    with at_rest(model) as eager:
        x, classes = _ready(eager, inputs, targets)
        rows = max(ROWS_AT_ONCE, len(x))
        return _given_back(
            IntegratedGradients(eager).attribute(x, target=classes, n_steps=steps, internal_batch_size=rows)
        )


def completeness_error(model: nn.Module, inputs: Tensor, targets: Tensor, attributions: Tensor) -> Tensor:
    """The sum of `attributions` (B, 3, H, W), less the score, plus the mean image's score: (B,)."""
    with at_rest(model) as eager, torch.no_grad():
        x, classes = _ready(eager, inputs, targets)
        change = scores(eager, x, classes) - scores(eager, torch.zeros_like(x), classes)
    return attributions.sum((1, 2, 3)) - change.cpu()


def guided_backprop(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The gradient, if at every ReLU on the way back only what is above zero passes: (B, 3, H, W), signed.

    Springenberg et al., "Striving for Simplicity", 2015, section 3.4. It changes ReLUs alone, clipped ones
    included; other activations keep their own derivative. Raises TinlabError for a network without ReLUs.
    """
    with at_rest(model) as eager, GuidedReLUs() as guided:
        x, classes = _ready(eager, inputs, targets)
        (found,) = torch.autograd.grad(scores(eager, x, classes).sum(), x)
    if not guided.met:
        raise TinlabError(
            f"guided_backprop changes how ReLUs are passed on the way back, and this "
            f"{type(eager).__name__} has none; take another method"
        )
    return _given_back(found)


def grad_cam(model: nn.Module, inputs: Tensor, targets: Tensor, *, layer: str | None = None) -> Tensor:
    """Where the last feature map speaks for the class: (B, H, W), from 0 up.

    The map's channels, each weighed by the mean of the score's gradient over it, added up; what is below zero
    is cut, and the result is enlarged to the image bilinearly. `layer` names another layer than the one that
    tinlab.explain.layers finds. Selvaraju et al., "Grad-CAM", ICCV 2017.
    """
    with at_rest(model) as eager:
        x, classes = _ready(eager, inputs, targets)
        place = feature_map(eager, x.shape[-1], layer)
        kept: list[Tensor] = []
        handle = eager.get_submodule(place.layer).register_forward_hook(
            lambda module, given, output: kept.append(output)
        )
        try:
            score = scores(eager, x, classes)
        finally:
            handle.remove()
        slope = place.channels_first(torch.autograd.grad(score.sum(), kept[-1])[0])  # (B, C, h, w)
        weights = slope.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        cam = (weights * place.channels_first(kept[-1])).sum(1, keepdim=True).relu()  # (B, 1, h, w)
        cam = F.interpolate(cam, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return _given_back(cam[:, 0])


def occlusion(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    window: int | None = None,
    stride: int | None = None,
) -> Tensor:
    """How much the score falls where a square of the mean colour covers the image: (B, H, W), signed.

    The square has `window` pixels a side, by default 3/16 of the image (12 of 64), and moves by `stride`, by
    default half of that. A pixel's value is the mean over the squares that covered it. Zeiler and Fergus,
    "Visualizing and Understanding Convolutional Networks", ECCV 2014, section 4.2.
    """
    from captum.attr import Occlusion

    window = max(1, 3 * inputs.shape[-1] // 16) if window is None else window
    stride = max(1, window // 2) if stride is None else stride
    if not 1 <= stride <= window <= min(inputs.shape[-2:]):
        raise TinlabError(
            f"occlusion with a window of {window} and a stride of {stride} pixels does not fit images of "
            f"{inputs.shape[-1]}; give 1 <= stride <= window <= {min(inputs.shape[-2:])}"
        )
    with at_rest(model) as eager, torch.no_grad():
        x, classes = _ready(eager, inputs, targets)
        found = Occlusion(eager).attribute(
            x.detach(),
            sliding_window_shapes=(3, window, window),
            strides=(3, stride, stride),
            target=classes,
            perturbations_per_eval=max(1, 2 * ROWS_AT_ONCE // len(x)),
        )
        return _given_back(found.mean(1))  # the square covers all three colours, so they are equal


class GuidedReLUs(TorchFunctionMode):
    """While it is entered, the gradient that comes back to a ReLU passes only where it is above zero too.

    Every ReLU that runs is met, as a module or a function, used once or often, in place or not. `met` counts
    them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.met = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        highest = _rectifies(func, args, kwargs)
        if highest is None:
            return func(*args, **kwargs)
        self.met += 1
        x = args[0] if args else kwargs["input"]
        inplace = func in _IN_PLACE or bool(kwargs.get("inplace"))
        return _Guided.apply(x, highest, inplace)


_RELUS = {F.relu, torch.relu, Tensor.relu}
_RELU6S = {F.relu6}
_IN_PLACE = {torch.relu_, Tensor.relu_}


def _rectifies(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
    """Above which value the ReLU that `func` is cuts off; infinity where it does not, None if it is none."""
    if func in _RELUS or func in _IN_PLACE:
        return float("inf")
    if func in _RELU6S:
        return 6.0
    if func is F.hardtanh:  # which nn.ReLU6 calls
        low = args[1] if len(args) > 1 else kwargs.get("min_val", -1.0)
        high = args[2] if len(args) > 2 else kwargs.get("max_val", 1.0)
        return float(high) if low == 0 else None
    return None


class _Guided(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, highest: float, inplace: bool) -> Tensor:
        ctx.save_for_backward((x > 0) & (x < highest))
        if inplace:
            ctx.mark_dirty(x)
            return x.clamp_(0, highest)
        return x.clamp(0, highest)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        (passes,) = ctx.saved_tensors
        return slopes[0].clamp(min=0) * passes, None, None


Kind = Literal["size", "colour", "signed_colour", "signed", "place"]
"""What a map's values are, which decides how it is drawn: `size` from 0 up, `colour` from 0 up for each
colour, `signed_colour`, `signed`, and `place`, a coarse map from 0 up that is drawn over the image."""


@dataclass(frozen=True)
class Method:
    """An entry of the registry. `meaning` says in a few words what a map shows."""

    attribute: Callable[[nn.Module, Tensor, Tensor], Tensor]
    title: str
    kind: Kind
    meaning: str


def _integrated(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    return integrated_gradients(model, inputs, targets).sum(1)


METHODS: dict[str, Method] = {
    "saliency": Method(saliency, "saliency", "size", "white: the score changes most with this pixel"),
    "saliency_positive": Method(
        saliency_positive, "positive saliency", "colour", "more of the colour shown raises the score"
    ),
    "saliency_negative": Method(
        saliency_negative, "negative saliency", "colour", "less of the colour shown raises the score"
    ),
    "smoothgrad": Method(
        smoothgrad,
        "SmoothGrad",
        "size",
        f"saliency, its gradient averaged over {SMOOTHGRAD_SAMPLES} noisy copies",
    ),
    "integrated_gradients": Method(
        _integrated, "integrated gradients", "signed", "red adds to the score, blue takes from it"
    ),
    "guided_backprop": Method(
        guided_backprop,
        "guided backprop",
        "signed_colour",
        "gradient through ReLUs that pass only what is positive",
    ),
    "grad_cam": Method(
        grad_cam, "Grad-CAM", "place", "bright: where the last feature map speaks for the class"
    ),
    "occlusion": Method(occlusion, "occlusion", "signed", "red: the score falls when this part is covered"),
}
"""Name -> how to compute its maps, and how to read them."""


def at_size(maps: Tensor, side: int) -> Tensor:
    """Maps (B, H, W) or (B, 3, H, W) with `side` pixels a side, for images larger or smaller than what the
    network sees."""
    if maps.shape[-1] == side:
        return maps
    planes = maps.reshape(len(maps), -1, *maps.shape[-2:])
    smaller = side < maps.shape[-1]  # then every pixel is to count, also one between those of the smaller map
    sized = F.interpolate(planes, size=(side, side), mode="bilinear", antialias=smaller)
    return sized.view(*maps.shape[:-2], side, side)


def find_methods(names: Iterable[str]) -> dict[str, Method]:
    """The methods called `names`. Raises TinlabError for an unknown one, or none."""
    import difflib

    found = {}
    for name in names:
        if name not in METHODS:
            near = difflib.get_close_matches(name, METHODS, n=3) or list(METHODS)
            raise TinlabError(f"methods: there is no '{name}'; try {', '.join(near)}")
        found[name] = METHODS[name]
    if not found:
        raise TinlabError(f"methods: none is named; there are {', '.join(METHODS)}")
    return found


def scores(model: nn.Module, x: Tensor, targets: Tensor) -> Tensor:
    """The scores of `targets` (B,) for inputs (B, 3, H, W), before softmax: (B,)."""
    every: Tensor = model(x)  # (B, classes)
    return every.gather(1, targets[:, None])[:, 0]


def _ready(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Copies on the model's device; the inputs collect gradients. Raises TinlabError for wrong shapes."""
    if inputs.ndim != 4 or inputs.shape[1] != 3 or targets.shape != inputs.shape[:1] or not len(inputs):
        raise TinlabError(
            f"inputs have shape {tuple(inputs.shape)} and targets {tuple(targets.shape)}; give (B, 3, H, W) "
            "and (B,), with at least one image"
        )
    device = device_of(model)
    x = inputs.detach().to(device, torch.float32, copy=True)
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    if not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise TinlabError(
            f"targets go from {int(targets.min())} to {int(targets.max())}; there are {classes} classes"
        )
    return x.requires_grad_(), targets.to(device, torch.int64)


def _given_back(maps: Tensor) -> Tensor:
    return maps.detach().to("cpu", torch.float32).contiguous()
