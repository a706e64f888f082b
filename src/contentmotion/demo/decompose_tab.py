"""Tab Decompose: a video's content frame, weights and motion, its reconstruction, and the motion of another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image

from contentmotion.commands.reconstruct import (
    Decomposition,
    clip_shape,
    decompose,
    motion_planes,
    recombine,
    side_by_side,
    to_pixels,
    weight_maps,
)
from contentmotion.demo.guards import reported, uploaded_video
from contentmotion.demo.settings import made_picture, made_video
from contentmotion.demo.studio import Studio
from contentmotion.demo.uploads import MAX_STRIDE, read_upload
from contentmotion.demo.visitors import MODEL

COLUMNS, CELL, GAP = 8, 96, 4  # the weights' picture: cells a row, and pixels


def add_decompose_tab(studio: Studio, examples: list[Path], history: gr.State) -> None:
    """Lays out the tab, inside a ``gr.Tab``."""
    with gr.Row():
        with gr.Column(min_width=300):
            video, stride = _upload("A video", examples, "uploaded")
            button = gr.Button("Take it apart", variant="primary")
            newest = gr.Button("Take my newest generated video", size="sm")
        with gr.Column(min_width=300):
            with gr.Row():
                both = made_video(
                    label="The clip | its reconstruction", height=220, min_width=220, elem_id="reconstruction"
                )
                content = made_picture(label="Its content frame", height=220, min_width=150)
            summary = gr.Markdown(elem_id="psnr")
    weights = _picture("Weights", "Frames, and below each its weights in the content frame (white: counts most there).")
    with gr.Row():
        with gr.Column(min_width=300):
            across = _picture("Motion plane z_x", "Motion plane z_x, by channel: rows downwards, time to the right.")
        with gr.Column(min_width=300):
            down = _picture("Motion plane z_y", "Motion plane z_y, by channel: time downwards, columns to the right.")

    @reported
    def take_apart(video: str | None, frame_stride: float) -> tuple[str, str, str, str, str, str]:
        """Split a video into content frame and motion latent, and put it together again.

        Args:
            video: The video file; its middle is used.
            frame_stride: Take every n-th frame.

        Returns:
            The clip beside its reconstruction (mp4), the content frame, the frames with their weights, the two motion
            planes (png), and the PSNR.
        """
        found, fps = _read(studio, video, frame_stride)
        original = to_pixels(found.original)
        maps = weight_maps(found.weights, *original.shape[1:3])
        rows = found.weights.shape[2] // studio.main.pipe.autoencoder.config.patch_size
        planes = motion_planes(found.motion_latent, rows)
        return (
            str(studio.video(side_by_side(found), fps, "reconstruction")),
            str(studio.picture(Image.fromarray(to_pixels(found.content[None])[0]), "content-frame")),
            str(studio.picture(_strip(original, maps), "weights")),
            str(studio.picture(planes[0], "motion-plane-x")),
            str(studio.picture(planes[1], "motion-plane-y")),
            f"PSNR {found.psnr:.1f} dB (every frame the content frame: {found.psnr_frozen:.1f} dB)",
        )

    outputs: list[Any] = [both, content, weights, across, down, summary]
    button.click(take_apart, [video, stride], outputs, api_name="decompose", show_progress_on=both, **MODEL)

    def pick(history: list) -> str:
        alive = [entry["files"][0] for entry in history if Path(entry["files"][0]).exists()]
        if not alive:
            raise gr.Error("nothing was generated yet in this session", print_exception=False)
        return alive[0]

    newest.click(pick, history, video, api_visibility="private", queue=False)
    _add_swap(studio, examples)


def _add_swap(studio: Studio, examples: list[Path]) -> None:
    gr.Markdown("### Swap: the content of one video, the motion of another")
    with gr.Row():
        with gr.Column(min_width=240):
            content_video, content_stride = _upload("Content of", examples, "swap-content")
        with gr.Column(min_width=240):
            motion_video, motion_stride = _upload("Motion of", examples[::-1], "swap-motion")
        with gr.Column(min_width=240):
            swapped = made_video(label="Content of | motion of | both together", height=220, elem_id="swapped")
            button = gr.Button("Swap", variant="primary")

    @reported
    def swap(content_video: str | None, motion_video: str | None, content_stride: float, motion_stride: float) -> str:
        """Join the content frame of one video and the motion of another.

        Args:
            content_video: The video file that gives the content frame.
            motion_video: The video file that gives the motion.
            content_stride: Take every n-th frame of the first.
            motion_stride: Take every n-th frame of the second.

        Returns:
            The two clips and the result, side by side (mp4).
        """
        first, fps = _read(studio, content_video, content_stride)
        second, _ = _read(studio, motion_video, motion_stride)
        pipe = studio.main.pipe
        joined = recombine(pipe.vae, pipe.autoencoder, first.content_latent, second.motion_latent)
        frames = np.concatenate([to_pixels(x) for x in (first.original, second.original, joined)], axis=2)
        return str(studio.video(frames, fps, "swapped"))

    inputs: list[Any] = [content_video, motion_video, content_stride, motion_stride]
    button.click(swap, inputs, swapped, api_name="swap", **MODEL)


def _picture(label: str, caption: str) -> gr.Image:
    """A picture below its caption: a label would cover some of it."""
    gr.Markdown(caption)
    return made_picture(label=label, show_label=False)


def _upload(label: str, examples: list[Path], name: str) -> tuple[gr.Video, gr.Number]:
    video = uploaded_video(label=label, height=220, elem_id=name, loop=True)
    stride = gr.Number(1, label="Take every n-th frame", precision=0, minimum=1, maximum=MAX_STRIDE)
    gr.Examples([[str(path)] for path in examples], [video], label="Examples")
    return video, stride


def _read(studio: Studio, video: str | None, frame_stride: float) -> tuple[Decomposition, float]:
    """An uploaded video taken apart, and its frames per second."""
    pipe = studio.main.pipe
    shape = clip_shape(pipe.vae, pipe.autoencoder)
    clip = read_upload(video, studio.config, studio.limits, shape, frame_stride)
    frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
    return decompose(pipe.vae, pipe.autoencoder, frames), clip.fps


def _strip(frames: np.ndarray, maps: np.ndarray) -> Image.Image:
    """Frames in rows, below each its map: uint8 (t, h, w, 3) each."""
    t, h, w = frames.shape[:3]
    height = round(CELL * h / w)
    num_rows = -(-t // COLUMNS)
    size = (COLUMNS * (CELL + GAP) - GAP, num_rows * (2 * (height + GAP) + GAP) - 2 * GAP)
    strip = Image.new("RGB", size, "white")
    for k in range(t):
        x, y = k % COLUMNS * (CELL + GAP), k // COLUMNS * (2 * (height + GAP) + GAP)
        for picture, top in ((frames[k], y), (maps[k], y + height + GAP)):
            strip.paste(Image.fromarray(picture).resize((CELL, height), Image.Resampling.BICUBIC), (x, top))
    return strip
