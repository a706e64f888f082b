"""Fields of what a visitor asks for, the left half of tab Generate above all, and of what comes of it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from contentmotion.demo.guards import uploaded_picture, uploaded_video
from contentmotion.demo.studio import MAX_GUIDANCE, MAX_SEED, Model, Studio
from contentmotion.pipelines.content_motion import REDRAWN

# Of what only the page itself calls, and answers at once.
PRIVATE: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
NEW_SEED = f"() => Math.floor(Math.random() * {MAX_SEED})"


def add_settings(studio: Studio) -> tuple[dict[str, Any], gr.Button, gr.Button]:
    """Lays them out; returns them by their names in ``Request``, with ``few_steps``, and the buttons that start and
    stop a run."""
    config, model = studio.config, studio.main
    usual, usual_frames = model.sampling(config), model.pipe.clip_shape[0]
    fields: dict[str, Any] = {"prompt": prompt_field(studio, lines=2)}
    if studio.examples:
        gr.Examples([[example] for example in studio.examples], [fields["prompt"]], label="Prompts it knows")
    with gr.Row():
        seed = fields["seed"] = seed_field(studio)
        gr.Button("New seed", min_width=90, size="sm", elem_id="new-seed").click(None, None, seed, js=NEW_SEED)
    with gr.Row():
        button = gr.Button("Generate", variant="primary", scale=3, min_width=150)
        stop = gr.Button("Stop", interactive=False, scale=1, min_width=70)
    with gr.Row():
        fields["num_videos"] = gr.Slider(1, config.max_videos, 1, step=1, label="Videos", min_width=130)
        fields["same_content"] = gr.Checkbox(
            False, label="One content frame", info="Several videos of the same picture", min_width=130
        )
    with gr.Row():
        step = model.pipe.motion_transformer.config.patch_size
        fields["num_frames"] = gr.Slider(
            step, max(step, config.max_frames // step * step), min(usual_frames, config.max_frames), step=step,
            label="Frames", info=f"Beyond {usual_frames}: clip by clip", min_width=130,
        )  # fmt: skip
        fields["loop"] = gr.Checkbox(False, label="Loop", info="The end leads to the beginning", min_width=130)
    few_steps = fields["few_steps"] = _few_step_switch(studio)
    with gr.Accordion("Start from a picture or a video", open=False):
        fields |= _start(model)
    with gr.Accordion("More settings", open=False):
        fields["negative_prompt"] = gr.Textbox("", label="Negative prompt", max_length=config.max_prompt_length)
        fields["steps"] = steps_field(studio, model, usual.steps, label="Steps")
        for name, of in (("guidance_scale", "content frame"), ("motion_guidance_scale", "motion")):
            fields[name] = gr.Slider(0, MAX_GUIDANCE, getattr(usual, name), step=0.1, label=f"Guidance of the {of}")

    def turn(few_steps: bool) -> tuple[gr.Slider, gr.Slider]:
        return turn_to(studio, choose(studio, few_steps))

    few_steps.input(turn, few_steps, [fields["steps"], fields["guidance_scale"]], **PRIVATE)
    return fields, button, stop


def prompt_field(studio: Studio, **settings: Any) -> gr.Textbox:
    """What to show."""
    return gr.Textbox(
        label="Prompt" if studio.main.takes_text else "Class number",
        value=studio.examples[0] if studio.examples else "",
        submit_btn=False,
        max_length=studio.config.max_prompt_length,
        **settings,
    )


def seed_field(studio: Studio) -> gr.Number:
    """Seed of the noise."""
    return gr.Number(studio.config.seed, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=120)


def steps_field(studio: Studio, model: Model, steps: int, **settings: Any) -> gr.Slider:
    """Denoising steps, as many as a model takes."""
    most = studio.most_steps(model)
    field = gr.Slider(1, most, min(steps, most), step=1, **settings)
    # Gradio's own refuses what is beyond the slider, but a program may ask another model; Studio.check says how much.
    field.preprocess = lambda payload: payload
    return field


def turn_to(studio: Studio, model: Model) -> tuple[gr.Slider, gr.Slider]:
    """Steps and guidance of the content frame where a visitor turns to a model: its usual ones."""
    sampling, most = model.sampling(studio.config), studio.most_steps(model)
    return gr.Slider(maximum=most, value=min(sampling.steps, most)), gr.Slider(value=sampling.guidance_scale)


def made_video(**settings: Any) -> gr.Video:
    """Plays a video that was made, over and over."""
    return gr.Video(autoplay=True, loop=True, interactive=False, buttons=["download"], **settings)


def made_picture(**settings: Any) -> gr.Image:
    """Shows a picture that was made."""
    return gr.Image(interactive=False, type="filepath", elem_classes="picture", buttons=["download"], **settings)


def choose(studio: Studio, few_steps: bool) -> Model:
    """The model that the switch stands for.

    Raises:
        ValueError: None of that kind is loaded.
    """
    model = next((model for model in studio.models if model.distilled == few_steps), None)
    if model is None and few_steps:
        raise ValueError("no distilled model is loaded: few_steps needs one (contentmotion demo --compare_with FOLDER)")
    return model or studio.main


def _start(model: Model) -> dict[str, Any]:
    """Pictures and videos to start from, and how much of them is drawn anew."""
    with gr.Row():
        image = uploaded_picture(label="A picture to animate", height=180, elem_id="image", min_width=130)
        video = uploaded_video(label="or a video to edit", height=180, elem_id="video", min_width=130, loop=True)
    strength = gr.Slider(
        0, 1, model.redrawn, step=0.05, label="Drawn anew of what is shown",
        info="0 keeps the picture, 1 forgets it", elem_id="strength",
    )  # fmt: skip
    motion_video = uploaded_video(label="A video whose motion to take", height=180, elem_id="motion", loop=True)
    motion_strength = gr.Slider(
        0, 1, 0, step=0.05, label="Drawn anew of the motion", info="Of a video's: 0 keeps it, 1 forgets it"
    )
    image.upload(lambda: model.redrawn, None, strength, **PRIVATE)
    video.upload(lambda: REDRAWN, None, strength, **PRIVATE)
    return {
        "image": image, "video": video, "motion_video": motion_video, "strength": strength,
        "motion_strength": motion_strength,
    }  # fmt: skip


def _few_step_switch(studio: Studio) -> gr.Checkbox:
    kinds = {model.distilled for model in studio.models}
    if kinds == {False}:
        note = "Needs a distilled model: contentmotion distill, then contentmotion demo --compare_with FOLDER"
    elif kinds == {True}:
        note = "The loaded model is a distilled one"
    else:
        note = f"Use {next(model.name for model in studio.models if model.distilled)}, in 1 to 8 steps"
    return gr.Checkbox(studio.main.distilled, label="Few steps", info=note, interactive=len(kinds) == 2)
