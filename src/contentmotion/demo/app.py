"""Command ``demo``: a web page over the same pipelines as the other commands."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contentmotion.config import DemoConfig
from contentmotion.demo.examples import write_examples
from contentmotion.demo.studio import Studio

if TYPE_CHECKING:
    import gradio as gr

    from contentmotion.demo.visitors import Visitors

TITLE = "contentmotion"
LOCAL = ("127.0.0.1", "localhost", "::1")
CSS = """
.gradio-container {max-width: 1200px !important; width: 100% !important; margin: 0 auto !important}
.picture img {width: 100% !important; height: 100% !important; object-fit: contain !important}
@media (max-width: 700px) {.table-wrap {max-width: calc(100vw - 66px) !important; overflow-x: auto !important}}
@media (max-width: 700px) {#costs th, #costs td, #compare-table th, #compare-table td {font-size: 12px !important}}
#new-seed {align-self: center}
.file-preview .stem {white-space: normal !important; overflow-wrap: anywhere}
#history .grid-container {grid-template-columns: repeat(auto-fill, 140px) !important}
#history .gallery-item, #history .thumbnail-lg {width: 140px; height: 140px; aspect-ratio: 1}
#history .caption-label {left: 0; right: 0; bottom: 0; max-width: none; font-size: 11px; text-align: left}
"""


def demo(config: DemoConfig) -> None:
    """Serves the page until it is interrupted.

    Raises:
        ValueError: A checkpoint is missing or damaged.
        OSError: The port is taken.
        ImportError: Gradio is not installed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that its folder goes whoever ends it
    with serving(config) as page:
        where = "this machine alone" if config.server_name in LOCAL else "everybody who can reach this machine"
        print(f"contentmotion demo listens on {page.local_url} for {where}; Ctrl-C ends it", flush=True)
        if config.share:
            print(f"and on {page.share_url or 'no public address: gradio.live gave none'}", flush=True)
        threading.Event().wait()


@contextmanager
def serving(config: DemoConfig) -> Iterator[gr.Blocks]:
    """Serves the page in the background, with a temporary folder of its own that goes when it ends.

    One page at a time in a process: Gradio takes the folder from the environment.

    Args:
        config: The page's settings; port 0 takes any that is free.

    Raises:
        ValueError: A checkpoint is missing or damaged.
        OSError: The port is taken.
        ImportError: Gradio is not installed.
    """
    folder = Path(tempfile.mkdtemp(prefix="contentmotion-demo-")).resolve()
    ours = {
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    page = None
    try:
        _require_gradio()
        from contentmotion.demo.visitors import Visitors

        studio, visitors = Studio(config, folder / "results"), Visitors()
        page = build_page(studio, visitors, write_examples(_made(folder / "clips")))
        launch(page, config, folder, visitors)
        yield page
    finally:
        if page is not None:
            page.close(verbose=False)
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def build_page(studio: Studio, visitors: Visitors, examples: list[Path]) -> gr.Blocks:
    """The page, not served yet.

    Args:
        studio: Its models.
        visitors: Who waits for what.
        examples: Videos to offer for taking apart.
    """
    import gradio as gr

    from contentmotion.demo.checkpoint_tab import add_checkpoint_tab
    from contentmotion.demo.compare_tab import add_compare_tab
    from contentmotion.demo.decompose_tab import add_decompose_tab
    from contentmotion.demo.generate_tab import add_generate_tab

    keep = max(1, round(studio.config.keep_minutes * 60))
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(min(keep, 60), keep)) as page:
        gr.Markdown("# contentmotion\nVideos from text, through a content frame and a motion latent.")
        with gr.Tab("Generate"):
            history = add_generate_tab(studio, visitors)
        with gr.Tab("Decompose"):
            add_decompose_tab(studio, examples, history)
        with gr.Tab("Compare"):
            add_compare_tab(studio, visitors)
        with gr.Tab("Checkpoint"):
            add_checkpoint_tab(studio)
    return page


def launch(page: gr.Blocks, config: DemoConfig, folder: Path, visitors: Visitors) -> None:
    """Starts to serve the page, with its limits; returns at once.

    Args:
        page: The page.
        config: Its settings.
        folder: Where uploads and results go.
        visitors: Who waits for what.

    Raises:
        OSError: The port is taken.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    from contentmotion.demo.guards import Gate

    upload_bytes = int(config.max_upload_mb * 1e6)
    system = ["system-ui", "sans-serif"]  # the theme's own fonts come from another server
    theme = gr.themes.Default(font=system, font_mono=["ui-monospace", "monospace"])
    page.queue(max_size=config.queue_size, default_concurrency_limit=1, api_open=False)
    visitors.watch(page._queue)
    options: dict[str, Any] = {
        "app_kwargs": {"middleware": [Middleware(Gate, config=config, folder=folder, visitors=visitors)]},
        "enable_monitoring": False,
        "footer_links": ["api"],
        "max_file_size": upload_bytes,
        "mcp_server": False,
        "prevent_thread_lock": True,
        "pwa": False,
        "quiet": True,
        "run_history": False,
        "ssr_mode": False,
        "state_session_capacity": 100,
    }
    page.launch(
        server_name=config.server_name,
        server_port=config.server_port or _free_port(config.server_name),
        share=config.share,
        theme=theme,
        css=CSS,
        **options,
    )


def _require_gradio() -> None:
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise ImportError('the page needs Gradio, which is not installed: pip install "contentmotion[demo]"') from None


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _free_port(name: str) -> int:
    import socket

    with socket.socket() as probe:
        probe.bind((name, 0))
        return probe.getsockname()[1]
