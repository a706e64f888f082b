"""Command ``reconstruct``: a real video through the autoencoder, and a picture of what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from contentmotion.config import SHIPPED_MODEL, ReconstructConfig
from contentmotion.evaluate.pixel_metrics import MAX_PSNR, psnr
from contentmotion.loading import load_autoencoder, load_vae, require_checkpoints, resolve_name
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.pipelines.sampling import require_finite
from contentmotion.run_dir import prepare_output_dir, resolve_device
from contentmotion.saving import write_json
from contentmotion.stages.image_vae import decode_frames, encode_frames, vae_latent_channels, vae_scale_factor
from contentmotion.video.pixels import to_float, to_uint8
from contentmotion.video.reader import read_clip
from contentmotion.video.write import write_contact_sheet, write_video

ERROR_GAIN = 4
PLANE_COLUMNS = 4  # channels of a motion plane in a row


@dataclass(frozen=True)
class Decomposition:
    """A clip, what the autoencoder splits it into, and what it makes of the two again.

    Attributes:
        original: The clip.
        decoded: Its reconstruction.
        content: The content frame.
        content_latent: The content frame as the decoder takes it.
        motion_latent: The motion, not standardised.
        weights: Share of each frame in the content frame, summing to 1 over t.
    """

    original: UInt8[Tensor, "t 3 H W"]
    decoded: UInt8[Tensor, "t 3 H W"]
    content: UInt8[Tensor, "3 H W"]
    content_latent: Float[Tensor, "c h w"]
    motion_latent: Float[Tensor, "D t s"]
    weights: Float[Tensor, "t c h w"]

    @property
    def psnr(self) -> float:
        """PSNR of the reconstruction over the whole clip, dB, at most 100."""
        return psnr(self.decoded[None], self.original[None]).clamp(max=MAX_PSNR).item()

    @property
    def psnr_frozen(self) -> float:
        """PSNR of a clip whose every frame is the content frame, dB, at most 100."""
        frozen = self.content.expand_as(self.original)
        return psnr(frozen[None], self.original[None]).clamp(max=MAX_PSNR).item()

    @property
    def psnr_per_frame(self) -> list[float]:
        """PSNR of each frame of the reconstruction, dB, at most 100."""
        return psnr(self.decoded, self.original).clamp(max=MAX_PSNR).tolist()


def reconstruct(config: ReconstructConfig) -> None:
    """Writes ``sheet.png``, ``reconstruction.mp4`` and ``reconstruction.json`` for the middle of a video.

    Raises:
        ValueError: Not a readable video, too short, a size that does not fit the autoencoder, or numbers that are not
            finite.
        OSError: A file is missing, or the output folder is not writable.
    """
    device = resolve_device(config.device)
    require_checkpoints(
        pretrained_model_name_or_path=config.pretrained_model_name_or_path, autoencoder=config.autoencoder
    )
    vae, autoencoder = load_parts(config.pretrained_model_name_or_path, config.autoencoder)
    autoencoder.to(device)
    if vae is not None:
        vae.to(device)

    num_frames, height, width = clip_shape(vae, autoencoder, config.num_frames, config.height, config.width)
    clip = read_clip(config.video, num_frames=num_frames, frame_stride=config.frame_stride, height=height, width=width)
    parts = decompose(vae, autoencoder, torch.from_numpy(clip.frames).permute(0, 3, 1, 2))
    output_dir = prepare_output_dir(config.output_dir, "reconstruct", config)
    scores = {"psnr": parts.psnr, "psnr_frozen": parts.psnr_frozen, "psnr_per_frame": parts.psnr_per_frame}
    shape = {"num_frames": num_frames, "height": height, "width": width}
    write_json(output_dir / "reconstruction.json", {"video": config.video} | scores | shape)
    write_video(output_dir / "reconstruction.mp4", side_by_side(parts), clip.fps)
    title = f"{Path(config.video).name}: PSNR {parts.psnr:.1f} dB"
    title += f" (every frame the content frame: {parts.psnr_frozen:.1f} dB)"
    rows = sheet_rows(parts)
    captions = [f"{title}: the content frame", *list(rows)[1:]]
    write_contact_sheet(output_dir / "sheet.png", list(rows.values()), captions)
    print(title)
    if config.pretrained_model_name_or_path == SHIPPED_MODEL and config.autoencoder is None:
        print("The shipped model was trained on emoji only: it blurs camera videos.")
    print(output_dir / "sheet.png", output_dir / "reconstruction.mp4", sep="\n")


def clip_shape(
    vae: ModelMixin | None,
    autoencoder: ContentMotionAutoencoder,
    num_frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
) -> tuple[int, int, int]:
    """Frames, height and width in pixels of a clip for an autoencoder: those it was trained on where none are given.

    Raises:
        ValueError: A size that the patches (and the VAE's strides) do not divide.
    """
    trained, factor = autoencoder.config, vae_scale_factor(vae)
    height = height or trained.sample_height * factor
    width = width or trained.sample_width * factor
    multiple = factor * trained.patch_size
    for name, size in (("height", height), ("width", width)):
        if size % multiple:
            raise ValueError(f"{name} must be a multiple of {multiple}, got {size}")
    return num_frames or trained.num_frames, height, width


@torch.no_grad()
def decompose(
    vae: ModelMixin | None, autoencoder: ContentMotionAutoencoder, original: UInt8[Tensor, "t 3 H W"]
) -> Decomposition:
    """Splits a clip into content frame and motion latent, and joins the two again.

    Args:
        vae: Image VAE, or None for pixels; on the autoencoder's device.

    Raises:
        ValueError: A network gives numbers that are not finite.
    """
    latents = encode_frames(vae, to_float(original)[None].to(autoencoder.device))
    require_finite("the image VAE", latents)
    encoded = autoencoder.encode(latents.to(autoencoder.dtype))  # of pixels they are float32, whatever it is
    require_finite("the autoencoder", encoded.content)
    require_finite("the autoencoder", encoded.motion_latent)
    content = to_uint8(decode_frames(vae, encoded.content[:, None]))[0, 0].cpu()
    decoded = recombine(vae, autoencoder, encoded.content[0], encoded.motion_latent[0])
    return Decomposition(
        original, decoded, content, encoded.content[0], encoded.motion_latent[0], encoded.weights[0].cpu()
    )


@torch.no_grad()
def recombine(
    vae: ModelMixin | None,
    autoencoder: ContentMotionAutoencoder,
    content_latent: Float[Tensor, "c h w"],
    motion_latent: Float[Tensor, "D t s"],
) -> UInt8[Tensor, "t 3 H W"]:
    """Joins a content frame and a motion latent as ``decompose`` gives them, of one clip or of two, to frames.

    Args:
        vae: Image VAE, or None for pixels; on the autoencoder's device.

    Raises:
        ValueError: The two are of different sizes, or a network gives numbers that are not finite.
    """
    latents = autoencoder.decode(*(x[None].to(autoencoder.dtype) for x in (content_latent, motion_latent)))
    require_finite("the autoencoder", latents)
    frames = decode_frames(vae, latents)
    require_finite("the image VAE", frames)
    return to_uint8(frames)[0].cpu()


def load_parts(name_or_path: str, autoencoder: str | None) -> tuple[ModelMixin | None, ContentMotionAutoencoder]:
    """Image VAE (None: pixels) and autoencoder of a pipeline; nothing else of it is read.

    Args:
        name_or_path: Pipeline folder or hub id, or the folder of an image VAE.
        autoencoder: Folder of another autoencoder.

    Raises:
        ValueError: A part is missing, or the two do not belong together.
    """
    own = load_autoencoder(autoencoder or name_or_path)
    path = Path(resolve_name(name_or_path))
    without_vae = (path / "model_index.json").exists() and not (path / "vae").exists()
    vae = None if without_vae else load_vae(name_or_path)
    channels = own.config.in_channels
    if channels == 3 and vae_latent_channels(vae) != 3:  # of pixels, whatever the pipeline's VAE
        return None, own
    if channels != vae_latent_channels(vae):
        raise ValueError(
            f"the autoencoder takes frames of {channels} channels, "
            f"those of {name_or_path} have {vae_latent_channels(vae)}"
        )
    return vae, own


def weight_maps(weights: Tensor, height: int, width: int) -> np.ndarray:
    """How much of each frame went into the content frame, as grey pictures of height and width in pixels.

    Args:
        weights: Shares of the frames, (t, c, h, w), summing to 1 over t.

    Returns:
        uint8 (t, height, width, 3): the mean over channels, relative to the pixel's largest. White everywhere
        means equal shares; one white frame among dark ones means that the pixel was taken from there.
    """
    share = weights.float().mean(dim=1).cpu().numpy()  # (t, h, w)
    grey = np.round(255 * share / share.max(axis=0)).astype(np.uint8)
    # Nearest neighbour, for an image VAE's latents are coarser than pixels.
    rows = np.arange(height) * grey.shape[1] // height
    columns = np.arange(width) * grey.shape[2] // width
    return np.repeat(grey[:, rows][:, :, columns, None], 3, axis=3)


def motion_planes(motion_latent: Float[Tensor, "D t s"], rows: int, cell: int = 6) -> tuple[Image.Image, Image.Image]:
    """The two planes of a motion latent as grey pictures, their D channels in rows of four, each over its own range.

    Args:
        rows: Rows H' of the patch grid: how many of the s places belong to the first plane.
        cell: Pixels that a value is drawn as, along each side.

    Returns:
        z_x: rows of the picture downwards, time to the right; z_y: time downwards, columns to the right.
    """
    z_x, z_y = motion_latent.float().cpu().split([rows, motion_latent.shape[-1] - rows], dim=2)
    return _tile(z_x.transpose(1, 2), cell), _tile(z_y, cell)


def _tile(channels: Float[Tensor, "D h w"], cell: int) -> Image.Image:
    low, high = channels.amin(dim=(1, 2), keepdim=True), channels.amax(dim=(1, 2), keepdim=True)
    grey = ((channels - low) / (high - low).clamp(min=1e-8) * 255).round().byte()
    number, height, width = grey.shape
    rows = -(-number // PLANE_COLUMNS)
    picture = np.full((rows * (height + 1) - 1, PLANE_COLUMNS * (width + 1) - 1), 255, np.uint8)
    for k, channel in enumerate(grey.numpy()):
        top, left = k // PLANE_COLUMNS * (height + 1), k % PLANE_COLUMNS * (width + 1)
        picture[top : top + height, left : left + width] = channel
    return Image.fromarray(picture).resize((picture.shape[1] * cell, picture.shape[0] * cell), Image.Resampling.NEAREST)


def side_by_side(parts: Decomposition) -> np.ndarray:
    """The clip on the left, its reconstruction on the right: uint8 (t, H, 2 W, 3)."""
    return np.concatenate([to_pixels(parts.original), to_pixels(parts.decoded)], axis=2)


def to_pixels(frames: UInt8[Tensor, "t 3 H W"]) -> np.ndarray:
    """Frames as files and pictures have them: uint8 (t, H, W, 3)."""
    return frames.permute(0, 2, 3, 1).numpy()


def sheet_rows(parts: Decomposition) -> dict[str, np.ndarray]:
    """The rows of ``sheet.png``, uint8 (t, H, W, 3) by caption; the content frame, of one frame, is the first."""
    original, decoded = to_pixels(parts.original), to_pixels(parts.decoded)
    error = np.abs(decoded.astype(np.int16) - original) * ERROR_GAIN
    weights = "weights of the content frame (white: the frame that counts most at that pixel)"
    return {
        "content frame": to_pixels(parts.content[None]),
        "original": original,
        "reconstruction": decoded,
        f"absolute error x{ERROR_GAIN}": error.clip(0, 255).astype(np.uint8),
        weights: weight_maps(parts.weights, *original.shape[1:3]),
    }
