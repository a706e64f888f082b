"""Tab Compare: one prompt and one seed, by two models or with two settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from contentmotion.demo.guards import reported
from contentmotion.demo.settings import PRIVATE, made_video, prompt_field, seed_field, steps_field, turn_to
from contentmotion.demo.studio import MAX_GUIDANCE, Request, Studio
from contentmotion.demo.visitors import MODEL, Visitors


def add_compare_tab(studio: Studio, visitors: Visitors) -> None:
    """Lays out the tab, inside a ``gr.Tab``."""
    with gr.Row():
        prompt = prompt_field(studio, scale=3, min_width=300)
        seed = seed_field(studio)
    sides = []
    with gr.Row():
        for number, letter in enumerate("AB"):
            with gr.Column(min_width=300):
                sides += _side(studio, letter, number)
    button = gr.Button("Compare", variant="primary")
    with gr.Row():
        videos = [
            made_video(label=f"Video {letter}", height=260, min_width=150, elem_id=f"compare-{letter.lower()}")
            for letter in "AB"
        ]
    table = gr.Dataframe(
        headers=["", "model", "steps", "passes", "seconds"], column_widths=["10%", "32%", "20%", "18%", "20%"],
        label="What they took: steps of content + motion, network passes, seconds", interactive=False, wrap=True,
        elem_id="compare-table",
    )  # fmt: skip
    inputs: list[Any] = [prompt, seed, *sides]
    button.click(
        _endpoint(studio, visitors), inputs, [*videos, table], api_name="compare", show_progress_on=videos, **MODEL
    )


def _endpoint(studio: Studio, visitors: Visitors) -> Callable[..., Any]:
    """What the button and programs call."""

    @reported
    def compare(
        prompt: str,
        seed: float,
        model_a: str,
        steps_a: float,
        guidance_scale_a: float,
        model_b: str,
        steps_b: float,
        guidance_scale_b: float,
        visitor: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  Gradio finds it by its default
    ) -> tuple[str, str, list[list[str]]]:
        """Make two videos from one prompt and one seed.

        Args:
            prompt: What to show; the number of a class, if the models take classes.
            seed: Seed of the noise, the same for both.
            model_a: Name of the model that makes the first video.
            steps_a: Its denoising steps.
            guidance_scale_a: Its guidance of the content frame.
            model_b: Name of the model that makes the second video.
            steps_b: Its denoising steps.
            guidance_scale_b: Its guidance of the content frame.

        Returns:
            The two videos (mp4), and a table of steps, network passes and seconds.
        """
        on_step = visitors.follow(str(visitor.session_hash), progress)
        sides = {"A": (model_a, steps_a, guidance_scale_a), "B": (model_b, steps_b, guidance_scale_b)}
        asked = {
            letter: (Request(prompt=prompt or "", seed=seed, steps=steps, guidance_scale=guidance), studio.model(name))
            for letter, (name, steps, guidance) in sides.items()
        }
        for request, model in asked.values():
            studio.check(request, model)  # both, before the first one is begun
        videos, rows = [], []
        for letter, (request, model) in asked.items():
            take = studio.generate(request, model, partial(on_step, f"video {letter}"))
            videos.append(str(take.files[0][0]))
            rows.append([letter, model.name, take.steps, str(take.passes), f"{take.seconds:.2f}"])
        return videos[0], videos[1], rows

    return compare


def _side(studio: Studio, letter: str, number: int) -> list[Any]:
    """Model, steps and guidance of one side; with one model, the second side takes a quarter of the steps."""
    names = [model.name for model in studio.models]
    model = studio.models[min(number, len(names) - 1)]
    usual = model.sampling(studio.config)
    steps = max(1, usual.steps // 4) if number and len(names) == 1 else usual.steps
    chosen = gr.Dropdown(names, value=model.name, label=f"Model {letter}")
    with gr.Row():
        fields = [
            steps_field(studio, model, steps, label=f"Steps {letter}", min_width=150),
            gr.Slider(0, MAX_GUIDANCE, usual.guidance_scale, step=0.1, label=f"Guidance {letter}", min_width=150),
        ]
    chosen.input(lambda name: turn_to(studio, studio.model(name)), chosen, fields, **PRIVATE)
    return [chosen, *fields]
