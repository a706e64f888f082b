"""What the tabs of the page share: loaded models, checked requests, the folder of results. Knows nothing of Gradio."""

from __future__ import annotations

import dataclasses
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from contentmotion.commands.generate import (
    Drawn,
    about_clips,
    denoising_steps,
    frame_rate,
    load_for_sampling,
    prompts_or_labels,
    provenance,
    read_start,
    sample_all,
    sample_motions,
    source,
    stem,
)
from contentmotion.config import SHIPPED_MODEL, SHIPPED_STUDENT, DemoConfig, GenerateConfig, SamplingConfig
from contentmotion.demo.uploads import (
    is_within,
    named_as_by_owner,
    require_room,
    require_short,
    require_small,
    require_whole,
)
from contentmotion.loading import require_checkpoints
from contentmotion.pipelines.content_motion import REDRAWN, ContentMotionPipeline
from contentmotion.pipelines.sampling import MOST_DISTILLED_STEPS, Sampling, draws_in_few_steps, resolve_sampling
from contentmotion.run_dir import resolve_device
from contentmotion.video.timeline import Limits
from contentmotion.video.write import write_picture, write_video

MAX_SEED = 2**31 - 1
MAX_GUIDANCE = 20.0
MAX_PIXELS = 3840 * 2160  # of an uploaded frame
READING_SECONDS = 20.0
RANGES = {"guidance_scale": MAX_GUIDANCE, "motion_guidance_scale": MAX_GUIDANCE, "strength": 1, "motion_strength": 1}
SHIPPED_EXAMPLES = ("clown face", "red heart", "woman surfing, dark skin tone", "thumbs up", "a cat")


@dataclass(frozen=True)
class Model:
    """A loaded pipeline.

    Attributes:
        name: What the page calls it.
        source: Folder or hub id it is from.
        pipe: On its device.
    """

    name: str
    source: str
    pipe: ContentMotionPipeline

    @property
    def distilled(self) -> bool:
        """Whether its content model samples in a few steps."""
        return draws_in_few_steps(self.pipe)

    @property
    def takes_text(self) -> bool:
        """Whether it is asked for videos by a text, not by a class id."""
        return self.pipe.text_encoder is not None

    @property
    def redrawn(self) -> float:
        """How much of a given picture this model draws anew unless told otherwise."""
        return 0.0 if self.pipe.autoencoder.config.content_mode == "frame" else REDRAWN

    def sampling(self, config: SamplingConfig) -> Sampling:
        """Steps and guidance of this model under some settings."""
        return resolve_sampling(self.pipe, **config.sampling())


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a visitor asks for: the arguments of the endpoint ``generate``, which says what they are (``generate_tab``);
    ``num_frames`` None is the model's clip."""

    prompt: str
    negative_prompt: str = ""
    seed: float = 0
    steps: float = 50
    guidance_scale: float = 4.0
    motion_guidance_scale: float = 1.0
    num_videos: float = 1
    same_content: bool = False
    image: str | None = None
    video: str | None = None
    motion_video: str | None = None
    strength: float = REDRAWN
    motion_strength: float = 0.0
    num_frames: float | None = None
    loop: bool = False


@dataclass(frozen=True)
class Take:
    """What came of a request.

    Attributes:
        files: Of each video an mp4 file, the same as a gif, and its content frame as a png.
        caption: Prompt and seed.
        seconds: From the prompt to the last video's pixels.
        sampling: Steps and guidance it was made with; of given and of long ones the steps that were taken.
        passes: Network passes of one video.
        notes: Lines about what was done to fit what was asked for.
    """

    files: list[list[Path]]
    caption: str
    seconds: float
    sampling: Sampling
    passes: int
    notes: list[str]

    @property
    def summary(self) -> str:
        """One line about what it took, and the notes."""
        videos = f"{len(self.files)} videos" if len(self.files) > 1 else "1 video"
        took = f"{videos} in {self.seconds:.1f} s: {self.steps} steps, {self.passes} network passes a video"
        return "; ".join([took, *self.notes])

    @property
    def steps(self) -> str:
        """Those of the content frame and those of the motion."""
        return f"{self.sampling.steps} + {self.sampling.motion_steps}"


class Studio:
    """The models of a page, and the folder it writes to.

    Args:
        config: The page's settings.
        folder: Where results go; exists.

    Raises:
        ValueError: A checkpoint is missing or damaged.
    """

    def __init__(self, config: DemoConfig, folder: Path) -> None:
        require_checkpoints(
            pretrained_model_name_or_path=config.pretrained_model_name_or_path,
            autoencoder=config.autoencoder,
            motion_transformer=config.motion_transformer,
            compare_with=config.compare_with,
        )
        own_parts = config.autoencoder or config.motion_transformer
        shipped = config.pretrained_model_name_or_path == SHIPPED_MODEL and not own_parts
        second = config.compare_with or (SHIPPED_STUDENT if shipped else None)
        self.config = config
        self.folder = folder
        self.limits = Limits(max_pixels=MAX_PIXELS, max_seconds=READING_SECONDS, max_bytes=2**30)
        self.models = [_load(config)]
        if second is not None:
            other = dataclasses.replace(
                config, pretrained_model_name_or_path=second, autoencoder=None, motion_transformer=None
            )
            model = _load(other)
            if model.name == self.main.name:
                model = dataclasses.replace(model, name=f"{model.name} (2)")
            self.models.append(model)

    @property
    def main(self) -> Model:
        """The model that the page is about."""
        return self.models[0]

    @property
    def examples(self) -> list[str]:
        """Prompts to offer."""
        if self.config.examples is not None:
            return self.config.examples
        return list(SHIPPED_EXAMPLES) if self.main.source in (SHIPPED_MODEL, SHIPPED_STUDENT) else []

    def model(self, name: str) -> Model:
        """A loaded model by its name on the page.

        Raises:
            ValueError: There is none of that name.
        """
        names = [model.name for model in self.models]
        if name not in names:
            raise ValueError(f"no model of that name is loaded: choose {' or '.join(names)}")
        return self.models[names.index(name)]

    def most_steps(self, model: Model) -> int:
        """Denoising steps that a visitor may ask a model for."""
        return min(self.config.max_steps, MOST_DISTILLED_STEPS) if model.distilled else self.config.max_steps

    def check(self, request: Request, model: Model) -> GenerateConfig:
        """A visitor's wishes as the settings of ``generate``.

        Raises:
            ValueError: They are beyond the page's limits, or make no sense.
        """
        config, of = self.config, " of a few-step model" if model.distilled else ""
        require_whole("seed", request.seed, 0, MAX_SEED)
        require_whole(f"steps{of}", request.steps, 1, self.most_steps(model))
        require_whole("num_videos", request.num_videos, 1, config.max_videos)
        if request.num_frames is not None:
            require_whole("num_frames", request.num_frames, 1, config.max_frames)
        for name, most in RANGES.items():
            if not is_within(value := getattr(request, name), 0, most):
                raise ValueError(f"{name} must be between 0 and {most:g}, got {value}")
        prompt, negative = request.prompt.strip(), request.negative_prompt.strip()
        for name, text in (("prompt", prompt), ("negative prompt", negative)):
            if len(text) > config.max_prompt_length:
                most = config.max_prompt_length
                raise ValueError(f"the {name} has {len(text)} characters; at most {most} are taken here")
        if not prompt and not (model.takes_text and (request.image or request.video)):
            raise ValueError("empty prompt: say what to show")
        if not model.takes_text and not prompt.isdecimal():
            raise ValueError(f"this model makes videos of classes: give the number of one, not {prompt!r}")
        self._check_start(request)
        settings = {field.name: getattr(config, field.name) for field in dataclasses.fields(SamplingConfig)} | {
            "pretrained_model_name_or_path": model.source,
            "num_inference_steps": int(request.steps),
            "motion_num_inference_steps": None,
            "guidance_scale": float(request.guidance_scale),
            "motion_guidance_scale": float(request.motion_guidance_scale),
            "seed": int(request.seed),
        }
        return GenerateConfig(
            **settings,
            prompt=[prompt] if prompt and model.takes_text else None,
            class_labels=None if model.takes_text else [int(prompt)],
            negative_prompt=negative or None,
            image=request.image,
            video=request.video,
            motion_from=request.motion_video,
            strength=request.strength if request.image or request.video else None,
            motion_strength=request.motion_strength if request.video or request.motion_video else None,
            num_frames=None if request.num_frames is None else int(request.num_frames),
            loop=request.loop,
        )

    def _check_start(self, request: Request) -> None:
        """Raises ``ValueError`` where a visitor's picture and videos cannot be used, or nothing would come of them."""
        if request.image and request.video:
            raise ValueError("a picture to animate and a video to edit: give one of them, each is what is shown")
        if request.image:
            require_small(request.image, self.config)
        for video in (request.video, request.motion_video):
            if video:
                require_short(video, self.config, self.limits)
        keeps_motion = bool(request.video or request.motion_video) and request.motion_strength == 0
        if keeps_motion and request.video and not request.motion_video and request.strength == 0:
            raise ValueError("strength 0 and motion_strength 0 give the video back as it is: raise one of them")
        if keeps_motion and request.same_content and request.num_videos > 1:
            raise ValueError("one content frame and one motion make one video: raise motion_strength for several")

    def generate(self, request: Request, model: Model, on_step: Callable[[int, int], object]) -> Take:
        """Makes videos and their files.

        Args:
            request: What for.
            model: By which model.
            on_step: Gets the steps done and their number, after each.

        Raises:
            ValueError: The request is beyond the page's limits.
        """
        config, count = self.check(request, model), int(request.num_videos)
        pipe, condition = model.pipe, prompts_or_labels(config)[0]
        clips = pipe.clips(config.num_frames, loop=config.loop)
        pipe.sample_shapes(config.num_frames)  # what cannot be made is said before files are read
        notes = [line] if (line := about_clips(pipe, config)) else []
        tell = lambda line: notes.append(named_as_by_owner(line.partition(" (--")[0]))  # noqa: E731
        given = read_start(pipe, config, self.limits, tell)
        sampling = model.sampling(config)
        steps, motion_steps = denoising_steps(pipe, config, sampling)
        sampling = dataclasses.replace(sampling, steps=steps, motion_steps=motion_steps)
        # Where clips overlap that are made at once, each step goes through all of them.
        at_once = 1 if clips.chained or clips.overlap else len(clips)
        passes = dataclasses.replace(sampling, motion_steps=motion_steps * at_once).passes
        same = request.same_content and count > 1
        batches = 1 if same else math.ceil(count / config.batch_size)
        total, done = batches * (steps + motion_steps) + same * motion_steps, 0

        def step() -> None:
            nonlocal done
            done += 1
            on_step(done, total)

        start = time.perf_counter()
        if same:
            drawn = sample_motions(pipe, config, condition, count, step, given)
        else:
            conditions: list = [condition] * count
            drawn = list(sample_all(pipe, config, conditions, step, start=given))
        seconds = time.perf_counter() - start
        files = [self._write(one, config, frame_rate(pipe, config), condition, k) for k, one in enumerate(drawn)]
        caption = f"{request.prompt.strip() or source(config)} · seed {config.seed}"
        return Take(files, caption, seconds, sampling, passes, notes)

    def place(self) -> Path:
        """A new folder for results, of a name that nobody can guess.

        Raises:
            ValueError: The page's files are as large as they may become.
        """
        require_room(self.folder.parent, self.config)
        folder = self.folder / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return folder

    def picture(self, picture: Image.Image, name: str) -> Path:
        """Writes a picture into a folder of its own."""
        path = self.place() / f"{name}.png"
        write_picture(path, picture)
        return path

    def video(self, frames: np.ndarray, fps: float, name: str) -> Path:
        """Writes a video that the autoencoder had a part in, uint8 (t, h, w, 3), into a folder of its own."""
        path = self.place() / f"{name}.mp4"
        write_video(path, frames, fps, {"generated": f"by an autoencoder, from a video: {name}"})
        return path

    def _write(self, drawn: Drawn, config: GenerateConfig, fps: float, condition: str | int, number: int) -> list[Path]:
        metadata, folder = provenance(config, condition, number), self.place()
        files = [folder / f"{stem(config, condition, number)}.{suffix}" for suffix in ("mp4", "gif", "png")]
        for path in files[:2]:
            write_video(path, drawn.video, fps, metadata)
        write_picture(files[2], Image.fromarray(drawn.content), metadata)
        return files


def _load(config: DemoConfig) -> Model:
    name = config.pretrained_model_name_or_path
    pipe = load_for_sampling(config, resolve_device(config.device))
    if not isinstance(pipe, ContentMotionPipeline):
        raise ValueError(f"{name} is a video model: the page shows models of content and motion")
    return Model(Path(name).resolve().name if Path(name).is_dir() else name, name, pipe)
