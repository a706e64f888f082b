"""Tab Generate: a prompt to videos, their content frames, and a history of the session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from contentmotion.demo.guards import reported
from contentmotion.demo.studio import MAX_GUIDANCE, MAX_SEED, Model, Request, Studio
from contentmotion.pipelines.sampling import MOST_DISTILLED_STEPS

MAX_HISTORY = 24  # videos a session remembers
NEW_SEED = f"() => Math.floor(Math.random() * {MAX_SEED})"
MODEL = {"concurrency_id": "model", "concurrency_limit": 1}  # one run through the networks at a time, of all tabs


def add_generate_tab(studio: Studio) -> gr.State:
    """Lays out the tab, inside a ``gr.Tab``; returns the session's history, newest video first."""
    history = gr.State([])
    stopped: set[str] = set()  # sessions whose run is to end after the step it is at
    with gr.Row():
        with gr.Column(min_width=300):
            inputs, button, stop = _add_settings(studio)
        with gr.Column(min_width=300):
            video, content, summary, files = _add_outputs()
    gr.Markdown("This session (click to show again)")
    gallery = gr.Gallery(
        label="This session", show_label=False, height=170, allow_preview=False, interactive=False,
        object_fit="contain", buttons=[], elem_id="history",
    )  # fmt: skip

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
        history: list,
        visitor: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  Gradio finds it by its default
    ) -> tuple[str, str, list[str], str, list]:
        """Make videos from a prompt.

        Args:
            prompt: What to show; the number of a class, if the model takes classes.
            negative_prompt: What to steer away from; may be empty.
            seed: Seed of the noise: the same seed gives the same video.
            steps: Denoising steps; 1 to 8 with few_steps.
            guidance_scale: Guidance of the content frame; 1 is none.
            motion_guidance_scale: Guidance of the motion; 1 is none.
            few_steps: Use the distilled model, where one is loaded.
            num_videos: How many videos.
            same_content: Whether they share one content frame and differ in motion alone.

        Returns:
            The first video (mp4), its content frame (png), all files (mp4, gif, png of each video), and what it took.
        """
        request = Request(
            prompt=prompt or "",  # an empty field may come as None
            negative_prompt=negative_prompt or "",
            seed=seed,
            steps=steps,
            guidance_scale=guidance_scale,
            motion_guidance_scale=motion_guidance_scale,
            num_videos=num_videos,
            same_content=same_content,
        )
        session = str(visitor.session_hash)
        stopped.discard(session)

        def on_step(done: int, total: int) -> None:
            progress((done, total), desc="denoising", unit="steps")
            if session in stopped:
                raise gr.Error("stopped", title="Stopped", duration=3, print_exception=False)

        take = studio.generate(request, _choose(studio, few_steps), on_step)
        rows = [[str(path) for path in row] for row in zip(take.videos, take.gifs, take.contents, strict=True)]
        entries = [{"files": row, "caption": take.caption, "summary": take.summary} for row in rows]
        written = [path for row in rows for path in row]
        return rows[0][0], rows[0][2], written, take.summary, (entries + history)[:MAX_HISTORY]

    def ask_to_stop(visitor: gr.Request) -> None:
        stopped.add(str(visitor.session_hash))

    def show_history(history: list) -> list:
        return [(entry["files"][1], entry["caption"]) for entry in _alive(history)]

    def show_again(history: list, chosen: gr.SelectData) -> tuple[str, str, list[str], str]:
        entry = _alive(history)[chosen.index]
        files = entry["files"]
        return files[0], files[2], files, f"{entry['caption']}: {entry['summary']}"

    shown: list[Any] = [video, content, files, summary]
    done = gr.on(
        [button.click, inputs[0].submit],
        generate,
        [*inputs, history],
        [*shown, history],
        api_name="generate",
        show_progress_on=video,
        **MODEL,
    )
    private: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
    stop.click(ask_to_stop, None, None, **private)
    done.success(show_history, history, gallery, **private)
    gallery.select(show_again, history, shown, **private)
    return history


def _add_outputs() -> tuple[gr.Video, gr.Image, gr.Markdown, gr.File]:
    """The right half: where the last video is shown, its content frame, what it took, and its files."""
    with gr.Row():
        video = gr.Video(
            label="Video", autoplay=True, loop=True, interactive=False, height=300, min_width=150,
            elem_id="generated", buttons=["download"],
        )  # fmt: skip
        content = gr.Image(
            label="Its content frame", interactive=False, height=300, min_width=150,
            type="filepath", buttons=["download"], elem_id="content", elem_classes="picture",
        )  # fmt: skip
    summary = gr.Markdown(elem_id="summary")
    files = gr.File(label="Download: mp4, gif, content frame", file_count="multiple", interactive=False)
    return video, content, summary, files


def _add_settings(studio: Studio) -> tuple[list[Any], gr.Button, gr.Button]:
    """The left half: what ``generate`` takes, in its order, and the buttons that start and stop it."""
    model, config = studio.main, studio.config
    usual = model.sampling(config)
    prompt = gr.Textbox(
        label="Prompt" if model.takes_text else "Class number",
        value=studio.examples[0] if studio.examples else "",
        lines=2,
        submit_btn=False,
        max_length=config.max_prompt_length,
    )
    if studio.examples:
        gr.Examples([[example] for example in studio.examples], [prompt], label="Prompts it knows")
    with gr.Row():
        seed = gr.Number(config.seed, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=120)
        gr.Button("New seed", min_width=90, size="sm", elem_id="new-seed").click(None, None, seed, js=NEW_SEED)
    with gr.Row():
        button = gr.Button("Generate", variant="primary", scale=3, min_width=150)
        stop = gr.Button("Stop", variant="stop", scale=1, min_width=70)
    with gr.Row():
        num_videos = gr.Slider(1, config.max_videos, 1, step=1, label="Videos", min_width=130)
        same_content = gr.Checkbox(
            False, label="One content frame", info="Several videos of the same picture", min_width=130
        )
    few_steps = _few_step_switch(studio)
    with gr.Accordion("More settings", open=False):
        negative_prompt = gr.Textbox(label="Negative prompt", max_length=config.max_prompt_length)
        steps = gr.Slider(1, config.max_steps, min(usual.steps, config.max_steps), step=1, label="Steps")
        guidance = gr.Slider(0, MAX_GUIDANCE, usual.guidance_scale, step=0.1, label="Guidance of the content frame")
        motion_guidance = gr.Slider(
            0, MAX_GUIDANCE, usual.motion_guidance_scale, step=0.1, label="Guidance of the motion"
        )

    def turn(few_steps: bool) -> tuple[Any, Any]:
        chosen = _choose(studio, few_steps)
        sampling = chosen.sampling(config)
        most = min(MOST_DISTILLED_STEPS, config.max_steps) if chosen.distilled else config.max_steps
        return (
            gr.Slider(maximum=most, value=min(sampling.steps, most)),
            gr.Slider(value=sampling.guidance_scale),
        )

    few_steps.input(turn, few_steps, [steps, guidance], api_visibility="private", queue=False)
    order = [prompt, negative_prompt, seed, steps, guidance, motion_guidance, few_steps, num_videos, same_content]
    return order, button, stop


def _few_step_switch(studio: Studio) -> gr.Checkbox:
    kinds = {model.distilled for model in studio.models}
    if kinds == {False}:
        note = "Needs a distilled model: contentmotion distill, then contentmotion demo --compare_with FOLDER"
    elif kinds == {True}:
        note = "The loaded model is a distilled one"
    else:
        note = f"Use {next(model.name for model in studio.models if model.distilled)}, in 1 to 8 steps"
    return gr.Checkbox(studio.main.distilled, label="Few steps", info=note, interactive=len(kinds) == 2)


def _choose(studio: Studio, few_steps: bool) -> Model:
    """The model that the switch stands for."""
    for model in studio.models:
        if model.distilled == few_steps:
            return model
    if few_steps:
        raise ValueError("no distilled model is loaded: few_steps needs one (contentmotion demo --compare_with FOLDER)")
    return studio.main


def _alive(history: list) -> list:
    """The entries whose files were not deleted yet."""
    return [entry for entry in history if all(Path(path).exists() for path in entry["files"])]
