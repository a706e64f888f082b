"""Tab Checkpoint: what is loaded, what a video costs, the model card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gradio as gr

from contentmotion.commands.info import flow_text, shown_settings
from contentmotion.cost.clip import clip_cost
from contentmotion.demo.guards import reported
from contentmotion.demo.studio import Model, Studio
from contentmotion.demo.visitors import MODEL
from contentmotion.loading import resolve_name
from contentmotion.pipelines.sampling import Sampling
from contentmotion.stages.image_vae import vae_scale_factor


def add_checkpoint_tab(studio: Studio) -> None:
    """Lays out the tab, inside a ``gr.Tab``."""
    names = [model.name for model in studio.models]
    with gr.Row():
        chosen = gr.Dropdown(names, value=names[0], label="Model", min_width=200)
        button = gr.Button("Show it, and count what a video costs", variant="primary", min_width=200)
    flow = gr.Markdown(_flow(studio.main))
    parts = gr.Dataframe(
        _parts(studio.main), headers=["part", "class", "parameters", "settings"], label="Parts", interactive=False,
        wrap=True, column_widths=["170px", "230px", "110px", "500px"], max_height=900,
    )  # fmt: skip
    costs = gr.Dataframe(
        headers=["part", "multiply-adds (G)", "of which attention (G)"], interactive=False, elem_id="costs", wrap=True,
        label="One video at the usual steps and guidance", column_widths=["40%", "30%", "30%"],
    )  # fmt: skip
    with gr.Accordion("Model card", open=False):
        card = gr.Markdown(_card(studio.main))

    @reported
    def describe(model: str) -> tuple[str, list[list[str]], list[list[str]], str]:
        """Tell what a model is made of, and what a video costs.

        Args:
            model: Name of a loaded model.

        Returns:
            Shapes; parts with their parameters and settings; multiply-adds by part; the model card.
        """
        found = studio.model(model)
        return _flow(found), _parts(found), _costs(found, found.sampling(studio.config)), _card(found)

    outputs: list[Any] = [flow, parts, costs, card]
    button.click(describe, chosen, outputs, api_name="checkpoint", show_progress_on=costs, **MODEL)


def _flow(model: Model) -> str:
    kind = "few-step (distilled)" if model.distilled else "ordinary"
    shapes = flow_text(model.pipe.autoencoder.config, vae_scale_factor(model.pipe.vae))
    total = sum(_count(part) for part in model.pipe.components.values())
    return f"**{model.name}**, {kind}, {total:,} parameters: {shapes}"


def _parts(model: Model) -> list[list[str]]:
    rows = []
    for name, part in model.pipe.components.items():
        if part is not None:
            config, count = getattr(part, "config", {}), _count(part)
            settings = config if isinstance(config, dict) else getattr(config, "to_dict", dict)()
            shown = ", ".join(f"{key} {value}" for key, value in shown_settings(settings).items())
            rows.append([name, type(part).__name__, f"{count:,}" if count else "", shown])
    return rows


def _count(part: Any) -> int:
    return sum(parameter.numel() for parameter in part.parameters()) if hasattr(part, "parameters") else 0


def _costs(model: Model, sampling: Sampling) -> list[list[str]]:
    costs = {name: (cost.multiply_adds, cost.attention) for name, cost in clip_cost(model.pipe, sampling).items()}
    steps = f"in all ({sampling.steps} + {sampling.motion_steps} steps, {sampling.passes} network passes)"
    costs[steps] = tuple(map(sum, zip(*costs.values(), strict=True)))
    return [[name, *(f"{count / 1e9:.1f}" for count in counts)] for name, counts in costs.items()]


def _card(model: Model) -> str:
    """The model card without its header. What leads nowhere here becomes text: links within the model's own folder, and
    pictures, which are of that folder or of other servers."""
    path = Path(resolve_name(model.source)) / "README.md"
    if not path.is_file():
        return "This model has no model card (README.md)."
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = re.sub(r"!\[([^\]]*)\](?:\([^)]*\)|\[[^\]]*\])", r"\1", text)
    text = re.sub(r"<img\b[^>]*>", "", text, flags=re.IGNORECASE)
    return re.sub(r"\[([^\]]+)\]\((?!https?://)[^)]*\)", r"\1", text)
