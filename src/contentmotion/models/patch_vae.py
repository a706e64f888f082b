"""A small image autoencoder for domains where no pretrained one fits: principal components of patches, refined."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from jaxtyping import Float
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


class PatchVAE(ModelMixin, ConfigMixin):
    """Image <-> principal components of its patches; a small convolutional network refines what the inverse gives.

    The encoder is an orthonormal projection, so a squared error of latents *is* a squared error of pixels (of what
    the components can say), and its latents do not change while the decoder learns. The first components are many
    times the size of the last; whitened, they are more alike, which a model that denoises them all finds easier.
    Everything runs at the latent resolution, which makes it about ten times cheaper than an autoencoder that convolves
    at full resolution.
    It offers what diffusers' pipelines ask of a VAE.

    Args:
        latent_channels: Principal components kept per patch.
        block_out_channels: Width of the refining network; as in diffusers, the length tells the patch size,
            ``2 ** (len - 1)``. All entries are equal.
        num_layers: Residual blocks of the refining network.
        scaling_factor: Factor that gives latents unit variance, all channels together.
        latent_divisors: What `encode` divides each component by; None leaves them as they are.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 12,
        block_out_channels: tuple[int, ...] = (96, 96, 96),
        num_layers: int = 4,
        scaling_factor: float = 1.0,
        latent_divisors: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.patch_size = 2 ** (len(block_out_channels) - 1)
        width, pixels = block_out_channels[0], 3 * self.patch_size**2
        if latent_channels > pixels:
            raise ValueError(f"latent_channels must be at most {pixels}, got {latent_channels}")
        self.register_buffer("mean", torch.zeros(pixels))
        self.register_buffer("basis", torch.eye(pixels)[:, :latent_channels].clone())  # orthonormal columns
        # A buffer, so that it counts among the weights by which a cache knows its VAE.
        self.register_buffer("divisors", None if latent_divisors is None else torch.tensor(latent_divisors))
        self.conv_in = nn.Conv2d(latent_channels, width, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualBlock(width) for _ in range(num_layers)))
        self.conv_out = nn.Conv2d(width, pixels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)  # start from the plain inverse
        nn.init.zeros_(self.conv_out.bias)

    @torch.no_grad()
    def fit_components(self, images: Float[Tensor, "n 3 H W"], whitening: float = 0.0) -> None:
        """Measures mean, principal components and scaling factor.

        Args:
            images: Pixels in [-1, 1]; a few thousand images are plenty.
            whitening: Power of its deviation that each component is divided by, 0 to 1; latents have unit variance
                together in any case, each by itself where it is 1.
        """
        patches = F.pixel_unshuffle(images.double(), self.patch_size).permute(0, 2, 3, 1).flatten(0, 2)
        mean = patches.mean(0)
        centred = patches - mean
        variances, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        keep = self.config.latent_channels
        basis = vectors.flip(1)[:, :keep]
        basis = basis * basis.sum(0).sign().where(basis.sum(0) != 0, 1.0)  # a vector's sign is arbitrary: fix it
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        deviations = variances.flip(0)[:keep].clamp_min(0).sqrt()
        # There may be fewer components than asked for: what is next to nothing is not blown up.
        divisors = deviations.clamp_min(1e-3 * float(deviations[0])) ** whitening
        self.register_to_config(
            scaling_factor=float((deviations / divisors).square().mean().rsqrt()),
            latent_divisors=divisors.tolist() if whitening else None,
        )
        self.divisors = divisors.to(self.basis) if whitening else None

    @apply_forward_hook  # CPU offload hooks in where forward is not called, too
    def encode(self, x: Float[Tensor, "b 3 H W"], return_dict: bool = True) -> AutoencoderTinyOutput | tuple[Tensor]:
        """Projects every patch on the components.

        Args:
            x: Pixels in [-1, 1]; sides are multiples of the patch size.
            return_dict: Whether to return the latents (b, c, h, w), before the scaling factor, in an output object.
        """
        patches = F.pixel_unshuffle(x, self.patch_size)  # (b, 3 p p, h, w)
        basis = self.basis if self.divisors is None else self.basis / self.divisors
        weight = basis.T[:, :, None, None]
        latents = F.conv2d(patches - self.mean[:, None, None], weight)
        return AutoencoderTinyOutput(latents=latents) if return_dict else (latents,)

    @apply_forward_hook
    def decode(
        self, z: Float[Tensor, "b c h w"], return_dict: bool = True, generator: object = None
    ) -> DecoderOutput | tuple[Tensor]:
        """The projection's inverse plus what the network adds.

        Args:
            z: Latents, before the scaling factor.
            return_dict: As in ``encode``.
            generator: Accepted because diffusers' pipelines pass one; decoding is deterministic.
        """
        basis = self.basis if self.divisors is None else self.basis * self.divisors
        patches = F.conv2d(z, basis[:, :, None, None]) + self.mean[:, None, None]
        refined = self.conv_out(F.silu(self.blocks(self.conv_in(z * self.config.scaling_factor))))
        sample = F.pixel_shuffle(patches + refined, self.patch_size)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, x: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b 3 H W"]:
        """Encodes and decodes images."""
        return self.decode(self.encode(x).latents).sample
