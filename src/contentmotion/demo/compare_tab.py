"""Tab Compare: one prompt and one seed, by two models or with two settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from contentmotion.demo.guards import reported
from contentmotion.demo.settings import prompt_field, seed_field
from contentmotion.demo.studio import MAX_GUIDANCE, Request, Studio, Take
from contentmotion.demo.visitors import LEFT, MODEL, Visitors, at_times

HEADER = ["", "model", "steps", "passes", "seconds"]
WIDTHS = ["10%", "32%", "20%", "18%", "20%"]


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
            gr.Video(
                label=f"Video {letter}", autoplay=True, loop=True, interactive=False, height=260, min_width=150,
                elem_id=f"compare-{letter.lower()}", buttons=["download"],
            )
            for letter in "AB"
        ]  # fmt: skip
    table = gr.Dataframe(
        headers=HEADER, label="What they took: steps of content + motion, network passes, seconds", interactive=False,
        elem_id="compare-table", wrap=True, column_widths=WIDTHS,
    )  # fmt: skip
    inputs: list[Any] = [prompt, seed, *sides]
    compare = _endpoint(studio, visitors)
    button.click(compare, inputs, [*videos, table], api_name="compare", show_progress_on=videos, **MODEL)


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

        show = at_times(progress)

        def on_step(letter: str, done: int, total: int) -> None:
            show(done, total, f"video {letter}")
            if visitors.has_left(str(visitor.session_hash)):
                raise gr.Error(LEFT, print_exception=False)

        sides = {"A": (model_a, steps_a, guidance_scale_a), "B": (model_b, steps_b, guidance_scale_b)}
        requests = {
            letter: Request(prompt=prompt or "", seed=seed, steps=steps, guidance_scale=guidance)
            for letter, (_, steps, guidance) in sides.items()
        }
        models = {letter: studio.model(name) for letter, (name, *_) in sides.items()}
        for letter, request in requests.items():
            studio.check(request, models[letter])  # both, before the first one is begun
        takes = {
            letter: studio.generate(request, models[letter], lambda done, total, at=letter: on_step(at, done, total))
            for letter, request in requests.items()
        }
        rows = [_row(letter, models[letter].name, take) for letter, take in takes.items()]
        return str(takes["A"].videos[0]), str(takes["B"].videos[0]), rows

    return compare


def _row(letter: str, name: str, take: Take) -> list[str]:
    steps = f"{take.sampling.steps} + {take.sampling.motion_steps}"
    return [letter, name, steps, str(take.passes), f"{take.seconds:.2f}"]


def _side(studio: Studio, letter: str, number: int) -> list[Any]:
    """Model, steps and guidance of one side; with one model, the second side takes a quarter of the steps."""
    names = [model.name for model in studio.models]
    model = studio.models[min(number, len(names) - 1)]
    usual = model.sampling(studio.config)
    steps = max(1, usual.steps // 4) if number and len(names) == 1 else usual.steps
    most = studio.config.max_steps
    chosen = gr.Dropdown(names, value=model.name, label=f"Model {letter}")
    with gr.Row():
        return [
            chosen,
            gr.Slider(1, most, min(steps, most), step=1, label=f"Steps {letter}", min_width=150),
            gr.Slider(0, MAX_GUIDANCE, usual.guidance_scale, step=0.1, label=f"Guidance {letter}", min_width=150),
        ]
