"""TriNeXt, a network of our own for images of 64 pixels, trained from scratch: three stages, the first two of
depthwise convolutions, the last of attention.

It follows nobody's paper as a whole. What it takes, and from where:

- Three stages, at 32, 16 and 8 pixels behind a stem with stride 2. The authors of ConvNeXt advise as much for
  small images (facebookresearch/ConvNeXt, issue 58). CPolyNeXt-LR, with 74.0% the best result from scratch
  that we know of, has three stages of widths 72, 144 and 288, at 64, 32 and 16 pixels (jjwang8/PolyNeXt,
  model.py): the stem `small` gives those resolutions, for four times the arithmetic.
- Blocks as in ConvNeXt (Liu et al., CVPR 2022): depthwise convolution, norm, and four times the channels
  between two pointwise convolutions. They are kept channels last, pointwise convolutions being linear
  layers.
- Batch norm in the blocks of convolution, where ConvNeXt has layer norm, and layer norm in those of
  attention, as in CoAtNet. ConvNeXt ends as well with either (Liu et al., section 2.6); this network begins
  faster with batch norm: after 250 steps of 64 images of 50 classes at 32 pixels, width 20, val loss 3.37
  against 3.56 with layer norm throughout, one run each. With stochastic depth the statistics are those of
  the samples that survive.
- Global response norm between the pointwise convolutions (Woo et al., "ConvNeXt V2", CVPR 2023), and not
  squeeze and excite: it has no layers of its own.
- Attention in the last stage alone, among its 64 tokens: convolutions first and attention last generalise as
  well as convolutions throughout, and hold more (Dai et al., "CoAtNet", NeurIPS 2021, section 2.2); Dagli
  ("Astroformer", 2023) takes that for small data sets, Tiny ImageNet among them. At equal size they do better
  on ImageNet: CAFormer than ConvFormer (Yu et al., "MetaFormer Baselines for Vision", 2024), APolyNeXt than
  CPolyNeXt (Wang et al., ICML 2026). 64 tokens cost less in attention than in the linear layers around it.
- Where a token is, attention learns from a depthwise convolution of the values, added to its output (Dong et
  al., "CSWin Transformer", CVPR 2022, LePE): that fits images of any size.
- A scale for each channel of a branch, which starts at 0.1 (Touvron et al., "Going deeper with Image
  Transformers", ICCV 2021, for up to 18 blocks; ConvNeXt starts it at 1e-6). ConvNeXt V2 has none.
- Stochastic depth by sample, each residual branch with a lot of its own (tinlab.models.depth).

Ours: depthwise convolutions of 3x3 and not 7x7. On a CPU, forward and backward in bfloat16, a 7x7 takes 12
times as long as a 3x3, and as long as the two linear layers of its block; the attention of the last stage
sees the whole image anyway. Stem and downsampling are overlapping 3x3 convolutions with stride 2; ConvNeXt's
2x2 patches are the stem `patch2x2`.

Initialisation, ours: weights of convolutions and linear layers are normal with variance 1 / fan in, cut off
at two standard deviations and scaled so that the variance is as stated; the classifier's have standard
deviation 0.02 (as all of ConvNeXt's). Biases are 0, and the global response norms start as the identity.

`trinext_conv` has no attention, for comparison: more convolution blocks instead, at about the same cost.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from tinlab import recipe
from tinlab.errors import TinlabError
from tinlab.models.activation import activation
from tinlab.models.depth import SampleSurvival, draw_rows, survival_probabilities
from tinlab.models.network import Network

STEMS = {"patch": (3, 2, 1), "patch2x2": (2, 2, 0), "small": (3, 1, 1)}
"""Name -> side, stride and padding of the stem's convolution."""

HEAD_CHANNELS = 32
"""Channels of one head of attention, as in CAFormer."""

EXPANSION = 4
"""How many times wider a block is between its two linear layers."""

FIRST_SCALE = 0.1
"""What the scales of the branches start from."""

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal cut off at -2 and 2."""


class BatchNorm(nn.BatchNorm2d):
    """Over samples and places, of channels-last values: (B, H, W, C) -> (B, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class LayerNorm(nn.LayerNorm):
    """Over channels, (B, …, C) -> (B, …, C), with ConvNeXt's epsilon."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)


class Convolution(nn.Conv2d):
    """A convolution of channels-last values, without copies: (B, H, W, C) -> (B, H', W', C')."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def depthwise(channels: int, *, bias: bool) -> Convolution:
    """A 3x3 convolution of each channel on its own, which keeps the resolution."""
    return Convolution(channels, channels, 3, padding=1, groups=channels, bias=bias)


class GlobalResponseNorm(nn.Module):
    """Weighs every channel by its length over the image, relative to the mean length of all channels:
    (B, H, W, C) -> (B, H, W, C). Woo et al. 2023, section 3.2. Starts as the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        # Not torch.linalg.vector_norm, which takes three times as long in bfloat16 on a CPU, nor square(),
        # which autocast does in float32 on a GPU. The sum runs in float32 and is rounded once, at its end.
        squares = (x * x).sum(dim=(1, 2), keepdim=True).float()  # (B, 1, 1, C)
        length = (squares + 1e-12).sqrt()  # with a slope at 0
        relative = length / (length.mean(dim=-1, keepdim=True) + 1e-6)
        factor = 1 + self.weight * relative
        return torch.addcmul(self.bias.to(x.dtype), x, factor.to(x.dtype))


class Mlp(nn.Module):
    """Two linear layers with EXPANSION times the channels between: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, channels: int, knobs: recipe.Model) -> None:
        super().__init__()
        self.expand = nn.Linear(channels, EXPANSION * channels)
        self.act = activation(knobs.activation)
        self.grn = GlobalResponseNorm(EXPANSION * channels)
        self.project = nn.Linear(EXPANSION * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.expand(x)  # (B, H, W, EXPANSION C)
        return self.project(self.grn(self.act(x)))  # (B, H, W, C)


class Attention(nn.Module):
    """Attention of all places to all, with a depthwise convolution of the values added: (B, H, W, C) ->
    (B, H, W, C). There are as many heads as fit, at least one, each of HEAD_CHANNELS channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heads = max(1, round(channels / HEAD_CHANNELS))
        inner = self.heads * HEAD_CHANNELS
        self.query_key = nn.Linear(channels, 2 * inner)
        self.value = nn.Linear(channels, inner)
        self.local = depthwise(inner, bias=True)
        self.project = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        value = self.value(x)  # (B, H, W, inner)
        query, key = self.query_key(x).chunk(2, dim=-1)
        y = attend(self._by_head(query), self._by_head(key), self._by_head(value))
        y = y.transpose(1, 2).reshape(value.shape)  # (B, H, W, inner)
        return self.project(y + self.local(value))

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, H, W, inner) -> (B, heads, H W, HEAD_CHANNELS)."""
        return x.flatten(1, 2).unflatten(-1, (self.heads, HEAD_CHANNELS)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(query key^T / sqrt(d)) value: three times (…, tokens, d) -> (…, tokens, d).

    On a CPU as three operations: for 64 tokens in bfloat16, the fused one takes five times as long, most of
    it going back.
    """
    if query.device.type != "cpu":
        return nn.functional.scaled_dot_product_attention(query, key, value)
    similar = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)  # (…, tokens, tokens)
    return similar.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value


class Residual(nn.Module):
    """A branch, each of its channels scaled, added to its input: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, channels: int, probability: float, **layers: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential()
        for name, layer in layers.items():
            self.branch.add_module(name, layer)
        self.scale = nn.Parameter(torch.full((channels,), FIRST_SCALE))
        self.survival = SampleSurvival(probability)

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """`rows`: which samples the branch runs for, from `draw_rows`; None: for all."""
        return self.survival(x, self.scaled, rows)

    def scaled(self, x: Tensor) -> Tensor:
        """What is added."""
        y = self.branch(x)
        return y * self.scale.to(y.dtype)


def convolution_block(channels: int, knobs: recipe.Model, survival: Iterator[float]) -> list[Residual]:
    """ConvNeXt's block, with a batch norm, which is one residual branch."""
    mix = depthwise(channels, bias=False)
    layers = {"depthwise": mix, "norm": BatchNorm(channels), "mlp": Mlp(channels, knobs)}
    return [Residual(channels, next(survival), **layers)]


def attention_block(channels: int, knobs: recipe.Model, survival: Iterator[float]) -> list[Residual]:
    """A transformer's block, which is two residual branches: among places, and among channels."""
    mix = Residual(channels, next(survival), norm=LayerNorm(channels), attention=Attention(channels))
    return [mix, Residual(channels, next(survival), norm=LayerNorm(channels), mlp=Mlp(channels, knobs))]


class TriNeXt(nn.Module):
    """A stem, three stages, a mean over all places and a classifier: (B, 3, H, W) -> (B, classes).

    `blocks` counts the blocks of the stages; those of the last one are of attention if `attention` says so.
    """

    def __init__(
        self, blocks: tuple[int, int, int], attention: bool, knobs: recipe.Model, classes: int
    ) -> None:
        super().__init__()
        assert knobs.width is not None
        assert knobs.stem is not None
        assert knobs.final_survival is not None
        assert knobs.dropout is not None
        makers = [convolution_block, convolution_block, attention_block if attention else convolution_block]
        branches = sum(blocks) + (blocks[-1] if attention else 0)
        survival = iter(survival_probabilities(branches, knobs.final_survival))
        side, stride, padding = STEMS[knobs.stem]
        channels = knobs.width
        self.stem = nn.Conv2d(3, channels, side, stride, padding, bias=False)
        self.stem_norm = BatchNorm(channels)
        self.stages = nn.ModuleList()
        self.downsamplings = nn.ModuleList()
        for stage, (count, maker) in enumerate(zip(blocks, makers, strict=True)):
            if stage > 0:
                down = Convolution(channels, 2 * channels, 3, stride=2, padding=1)
                self.downsamplings.append(nn.Sequential(BatchNorm(channels), down))
                channels *= 2
            residuals = [residual for _ in range(count) for residual in maker(channels, knobs, survival)]
            self.stages.append(nn.ModuleList(residuals))
        self.norm = LayerNorm(channels)
        self.dropout = nn.Dropout(knobs.dropout[0]) if knobs.dropout[0] else nn.Identity()
        self.head = nn.Linear(channels, classes)
        self._survivals = [m for m in self.modules() if isinstance(m, SampleSurvival)]
        self._drops = knobs.final_survival < 1
        self._initialise()

    def forward(self, x: Tensor) -> Tensor:
        # All lots are drawn here at once, so that a compiled network is broken up in one place alone.
        drawn: list[Tensor | None] = [None] * len(self._survivals)
        if self.training and self._drops:
            drawn = draw_rows(self._survivals, len(x), x.device)
        rows = iter(drawn)
        x = self.stem(x).permute(0, 2, 3, 1)  # (B, H, W, width); H = 32 at 64 pixels, stem of stride 2
        x = self.stem_norm(x)
        for stage, residuals in enumerate(self.stages):
            if stage > 0:
                x = self.downsamplings[stage - 1](x)  # (B, H/2, W/2, 2 C)
            assert isinstance(residuals, nn.ModuleList)
            for residual in residuals:
                x = residual(x, next(rows))
        x = self.norm(x.mean(dim=(1, 2)))  # (B, 4 width)
        return self.head(self.dropout(x))

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                fan_in = module.weight[0].numel()
                std = 0.02 if module is self.head else math.sqrt(1 / fan_in)
                nn.init.trunc_normal_(module.weight, std=1.0)
                module.weight.mul_(std / TRUNCATED_STD)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _build(blocks: tuple[int, int, int], attention: bool, knobs: recipe.Model, classes: int) -> TriNeXt:
    if knobs.stem not in STEMS:
        raise TinlabError(f"model.stem: {knobs.name} has no stem '{knobs.stem}'; take {', '.join(STEMS)}")
    return TriNeXt(blocks, attention, knobs, classes)


def network(blocks: tuple[int, int, int], width: int, summary: str, *, attention: bool = True) -> Network:
    """An entry of the registry."""
    return Network(
        build=partial(_build, blocks, attention),
        summary=summary,
        source="tinlab's own, after Liu et al. 2022, Woo et al. 2023 and Dai et al. 2021",
        classifier="head",
        options={
            "width": width,
            "stem": "patch",
            "activation": "gelu",
            "final_survival": 1.0,
            "dropout": (0.0,),
        },
    )


NETWORKS = {
    "trinext_small": network(
        (2, 4, 3), 40, "TriNeXt: 2 and 4 blocks of convolution, 3 of attention; 1.4 million parameters"
    ),
    "trinext": network(
        (3, 5, 5), 64, "TriNeXt: 3 and 5 blocks of convolution, 5 of attention; 5.2 million parameters"
    ),
    "trinext_large": network(
        (3, 6, 5), 96, "TriNeXt: 3 and 6 blocks of convolution, 5 of attention; 11.8 million parameters"
    ),
    "trinext_conv": network(
        (3, 6, 7),
        64,
        "TriNeXt without attention: 3, 6 and 7 blocks of convolution; 5.0 million parameters",
        attention=False,
    ),
}
