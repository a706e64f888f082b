"""Tab Compare: one prompt and one seed, by two models or with two settings."""

from __future__ import annotations

from typing import Any

import gradio as gr

from contentmotion.demo.generate_tab import MODEL
from contentmotion.demo.guards import reported
from contentmotion.demo.studio import MAX_GUIDANCE, MAX_SEED, Request, Studio, Take

HEADER = ["", "model", "steps (content + motion)", "network passes", "seconds"]


def add_compare_tab(studio: Studio) -> None:
    """Lays out the tab, inside a ``gr.Tab``."""
    config = studio.config
    with gr.Row():
        prompt = gr.Textbox(
            label="Prompt" if studio.main.takes_text else "Class number",
            value=studio.examples[0] if studio.examples else "",
            max_length=config.max_prompt_length,
            scale=3,
            min_width=300,
        )
        seed = gr.Number(config.seed, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=120)
    sides, videos = [], []
    with gr.Row():
        for number, letter in enumerate("AB"):
            with gr.Column(min_width=300):
                sides += _side(studio, letter, number)
                videos.append(
                    gr.Video(
                        label=f"Video {letter}",
                        autoplay=True,
                        loop=True,
                        interactive=False,
                        height=260,
                        elem_id=f"compare-{letter.lower()}",
                        buttons=["download"],
                    )  # fmt: skip
                )
    button = gr.Button("Compare", variant="primary")
    table = gr.Dataframe(headers=HEADER, label="What they took", interactive=False, elem_id="compare-table")

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
        wanted = [("A", model_a, steps_a, guidance_scale_a), ("B", model_b, steps_b, guidance_scale_b)]
        models = [studio.model(name) for _, name, _, _ in wanted]
        requests = [
            Request(prompt=prompt or "", seed=seed, steps=steps, guidance_scale=guidance)
            for _, _, steps, guidance in wanted
        ]
        for request, model in zip(requests, models, strict=True):
            studio.check(request, model)  # both, before the first one is begun
        takes: list[Take] = []
        for (letter, *_), request, model in zip(wanted, requests, models, strict=True):

            def on_step(done: int, total: int, letter: str = letter) -> None:
                progress((done, total), desc=f"video {letter}", unit="steps")

            takes.append(studio.generate(request, model, on_step))
        rows = [
            [
                letter, name, f"{take.sampling.steps} + {take.sampling.motion_steps}", str(take.sampling.passes),
                f"{take.seconds:.2f}",
            ]
            for (letter, name, *_), take in zip(wanted, takes, strict=True)
        ]  # fmt: skip
        return str(takes[0].videos[0]), str(takes[1].videos[0]), rows

    inputs: list[Any] = [prompt, seed, *sides]
    button.click(compare, inputs, [*videos, table], api_name="compare", show_progress_on=videos, **MODEL)


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
