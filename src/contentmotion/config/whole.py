"""Settings of the command that runs all stages, and of the one that cuts clips for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from contentmotion.config.common import Batch, Decay, Frames, Pixels, Rate, Seed
from contentmotion.config.data import FolderConfig


@dataclass(frozen=True, kw_only=True)
class TrainPipelineConfig(FolderConfig):
    """From a folder of videos to a model of your own, in one command: cuts clips, trains every part, puts them
    together, draws what the clips' captions say, and writes a report. The same command goes on where it was stopped.

    Example: contentmotion train my_videos --output_dir outputs/mine

    The settings of each stage are in output_dir/settings, as YAML, before anything is trained (--dry_run true stops
    there): change them, and give the same command.

    Attributes:
        train_data_dir: Where the videos are: a folder, of any size, length and layout. What they show is in a text
            beside each, in a list, or in their names ("a dog runs.mp4").
        output_dir: Folder for everything that is made.
        preset: Sizes and steps for a machine: cpu (two cores, some 20 minutes), 12gb, 24gb, 80gb (GPUs by their
            memory); "auto" looks at this one; or a YAML file of your own, like those in contentmotion/presets.
        image_model: Stable Diffusion folder or hub id to start from; else everything is trained from nothing.
        fine_tune: Train the image model on your clips, too; else it stays as it is, and your clips teach motion alone.
        vae: Image VAE to use where there is no image_model; else a small one is trained.
        seed: Seed of everything.
        dry_run: Write the settings, say what would be done, and train nothing.
    """

    train_data_dir: str
    output_dir: str = "outputs/mine"
    preset: str = "auto"
    image_model: str | None = None
    fine_tune: bool = False
    vae: str | None = None
    seed: Seed = 0
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class CutConfig(FolderConfig):
    """Cut short clips of one size out of videos of any size and length: a folder that every other command reads, and
    reads fast. A run that was stopped goes on.

    Example: contentmotion cut my_videos --output_dir clips

    Attributes:
        train_data_dir: Where the videos are (see train-autoencoder). Captions are those of the data, else the names of
            classes or files ("a dog runs-2.mp4").
        output_dir: Folder for the clips and their `metadata.jsonl`, which may be edited.
        num_frames: Frames per clip.
        height: Pixels.
        width: Pixels.
        fps: Frames per second of the clips; else 8, or as many as it takes for the videos to be long enough.
        resize_mode: "center": fill the frame, cut off what sticks out; "pad": show all, between black bars.
        clips_per_video: The most clips of one video; they do not overlap.
        max_bad_fraction: Stop when more than this share of the videos cannot be used; fewer are left out and named.
    """

    train_data_dir: str
    output_dir: str
    num_frames: Frames = 16
    height: Pixels = 64
    width: Pixels = 64
    fps: Rate | None = None
    resize_mode: Literal["center", "pad"] = "center"
    clips_per_video: Batch = 8
    max_bad_fraction: Decay = 0.25
