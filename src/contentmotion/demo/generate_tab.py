"""Tab Generate: a prompt, a picture or a video to videos, their content frames, and a history of the session."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr

from contentmotion.demo.guards import reported
from contentmotion.demo.settings import PRIVATE, add_settings, choose, made_picture, made_video
from contentmotion.demo.studio import Request, Studio
from contentmotion.demo.visitors import MODEL, Visitors
from contentmotion.pipelines.content_motion import REDRAWN

MAX_HISTORY = 24  # videos a session remembers


class Stopped(Exception):
    """The visitor wants no more of a run."""


class Runs:
    """The runs of all sessions: what is made for each, and which of them is to stop."""

    def __init__(self, studio: Studio, visitors: Visitors) -> None:
        self.studio = studio
        self.visitors = visitors
        self._stopped: set[str] = set()

    def start(self, visitor: gr.Request) -> gr.Button:
        """A run was asked for: the button that stops it."""
        self._stopped.discard(str(visitor.session_hash))
        return gr.Button(interactive=True, variant="stop")

    def stop(self, visitor: gr.Request) -> gr.Button:
        """It is to end after the step that it is at: the button again."""
        self._stopped.add(str(visitor.session_hash))
        return self.end()

    def end(self) -> gr.Button:
        """No run: a button with nothing to stop."""
        return gr.Button(interactive=False, variant="secondary")

    def make(
        self, request: Request, few_steps: bool, history: list, session: str, progress: gr.Progress
    ) -> tuple[Any, ...]:
        """What the tab shows of a request: video, content frame, files, summary, history."""
        follow = self.visitors.follow(session, progress)

        def on_step(done: int, total: int) -> None:
            if session in self._stopped:
                raise Stopped(f"Stopped after {done} of {total} steps.")
            follow("denoising", done, total)

        try:
            take = self.studio.generate(request, choose(self.studio, few_steps), on_step)
        except Stopped as stopped:
            self._stopped.discard(session)
            return gr.skip(), gr.skip(), gr.skip(), str(stopped), gr.skip()
        rows = [[str(path) for path in row] for row in take.files]
        entries = [{"files": row, "caption": take.caption, "summary": take.summary} for row in rows]
        written = [path for row in rows for path in row]
        return rows[0][0], rows[0][2], written, take.summary, (entries + history)[:MAX_HISTORY]


def add_generate_tab(studio: Studio, visitors: Visitors) -> gr.State:
    """Lays out the tab, inside a ``gr.Tab``; returns the session's history, newest video first."""
    history, runs = gr.State([]), Runs(studio, visitors)
    with gr.Row():
        with gr.Column(min_width=300):
            fields, button, stop = add_settings(studio)
        with gr.Column(min_width=300):
            with gr.Row():
                video = made_video(label="Video", height=300, min_width=150, elem_id="generated")
                content = made_picture(label="Its content frame", height=300, min_width=150, elem_id="content")
            summary = gr.Markdown(elem_id="summary")
            files = gr.File(label="Download: mp4, gif, content frame", file_count="multiple", interactive=False)
    gr.Markdown("This session (click to show again)")
    gallery = gr.Gallery(
        label="This session", show_label=False, height=170, allow_preview=False, interactive=False,
        object_fit="contain", buttons=[], elem_id="history",
    )  # fmt: skip
    shown: list[Any] = [video, content, files, summary]
    asked, generate = [button.click, fields["prompt"].submit], _endpoint(runs)
    inputs = [fields[name] for name in inspect.signature(generate).parameters if name in fields]
    gr.on(asked, runs.start, None, stop, **PRIVATE)
    done = gr.on(
        asked, generate, [*inputs, history], [*shown, history], api_name="generate", show_progress_on=video, **MODEL
    )
    stop.click(runs.stop, None, stop, **PRIVATE)
    done.then(runs.end, None, stop, **PRIVATE)
    done.success(_show_history, history, gallery, **PRIVATE)
    gallery.select(_show_again, history, shown, **PRIVATE)
    return history


def _endpoint(runs: Runs) -> Callable[..., Any]:
    """What the button and programs call."""

    @reported
    def generate(
        prompt: str,
        negative_prompt: str,
        seed: float,
        steps: float,
        guidance_scale: float,
        motion_guidance_scale: float,
        few_steps: bool,
        num_videos: float,
        same_content: bool,
        image: str | None = None,
        video: str | None = None,
        motion_video: str | None = None,
        strength: float = REDRAWN,
        motion_strength: float = 0.0,
        num_frames: float | None = None,
        loop: bool = False,
        history: list | None = None,
        visitor: gr.Request = None,  # type: ignore[assignment]  Gradio gives it
        progress: gr.Progress = gr.Progress(),  # noqa: B008  Gradio finds it by its default
    ) -> tuple[Any, ...]:
        """Make videos from a prompt, a picture, or another video.

        Args:
            prompt: What to show; the number of a class, if the model takes classes. May be empty beside image or video.
            negative_prompt: What to steer away from; may be empty.
            seed: Seed of the noise: the same seed gives the same video.
            steps: Denoising steps; 1 to 8 with few_steps.
            guidance_scale: Guidance of the content frame; 1 is none.
            motion_guidance_scale: Guidance of the motion; 1 is none.
            few_steps: Use the distilled model, where one is loaded.
            num_videos: How many videos.
            same_content: Whether they share one content frame and differ in motion alone.
            image: A picture to animate (png, jpeg, webp, gif); of another shape, its middle is cut out.
            video: A video to edit, from its first frame on: the prompt redraws what it shows, and its motion is kept.
            motion_video: A video whose motion to take, whatever it shows.
            strength: How much of the picture, or of what the video shows, is drawn anew, from 0 to 1.
            motion_strength: How much of a given motion is drawn anew, from 0 to 1.
            num_frames: Frames of a video; more than a clip has are made clip by clip.
            loop: Whether a video's end leads to its beginning.

        Returns:
            The first video (mp4), its content frame (png), all files (mp4, gif, png of each video), and what it took.
        """
        request = Request(
            prompt=prompt or "", negative_prompt=negative_prompt or "",  # an empty field may come as None
            seed=seed, steps=steps, guidance_scale=guidance_scale, motion_guidance_scale=motion_guidance_scale,
            num_videos=num_videos, same_content=same_content, image=image, video=video, motion_video=motion_video,
            strength=strength, motion_strength=motion_strength, num_frames=num_frames, loop=loop,
        )  # fmt: skip
        return runs.make(request, few_steps, history or [], str(visitor.session_hash), progress)

    return generate


def _show_history(history: list) -> list:
    return [(entry["files"][1], entry["caption"]) for entry in _alive(history)]


def _show_again(history: list, chosen: gr.SelectData) -> tuple[str, str, list[str], str]:
    entry = _alive(history)[chosen.index]
    files = entry["files"]
    return files[0], files[2], files, f"{entry['caption']}: {entry['summary']}"


def _alive(history: list) -> list:
    """The entries whose files were not deleted yet."""
    return [entry for entry in history if all(Path(path).exists() for path in entry["files"])]
