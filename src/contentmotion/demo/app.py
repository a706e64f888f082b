"""Command ``demo``: a web page over the same pipelines as the other commands."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
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
    """Serves the page until it is interrupted, with a temporary folder of its own that goes when it ends.

    Raises:
        ValueError: A checkpoint is missing or damaged.
        OSError: The port is taken.
        ImportError: Gradio is not installed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that its folder goes whoever ends it
    page = None
    with tempfile.TemporaryDirectory(prefix="contentmotion-demo-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        ours = {
            "GRADIO_TEMP_DIR": str(folder),
            "GRADIO_EXAMPLES_CACHE": str(folder / "examples"),
            "GRADIO_ANALYTICS_ENABLED": "False",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        before = {name: os.environ.get(name) for name in ours}
        os.environ.update(ours)
        try:
            _require_gradio()
            from contentmotion.demo.visitors import Visitors

            studio, visitors = Studio(config, folder / "results"), Visitors()
            page = build_page(studio, visitors, write_examples(folder / "clips"))
            launch(page, config, folder, visitors)
            where = "this machine alone" if config.server_name in LOCAL else "everybody who can reach this machine"
            print(f"contentmotion demo listens on {page.local_url} for {where}; Ctrl-C ends it", flush=True)
            if config.share:
                print(f"and on {page.share_url or 'no public address: gradio.live gave none'}", flush=True)
            threading.Event().wait()
        finally:
            if page is not None:
                page.close(verbose=False)
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def build_page(studio: Studio, visitors: Visitors, examples: list[Path]) -> gr.Blocks:
    """The page, not served yet; ``examples`` are videos to offer for taking apart."""
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
    """Starts to serve the page, with its limits; uploads and results go to ``folder``. Returns at once.

    Raises:
        OSError: The port is taken.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    from contentmotion.demo.guards import Gate

    port = config.server_port
    if port == 0:  # any that is free
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    page.queue(max_size=config.queue_size, default_concurrency_limit=1, api_open=False)
    visitors.watch(page._queue)
    options: dict[str, Any] = {
        "app_kwargs": {"middleware": [Middleware(Gate, config=config, folder=folder, visitors=visitors)]},
        "enable_monitoring": False,
        "footer_links": ["api"],
        "max_file_size": int(config.max_upload_mb * 1e6),
        "mcp_server": False,
        "prevent_thread_lock": True,
        "pwa": False,
        "quiet": True,
        "run_history": False,
        "ssr_mode": False,
        "state_session_capacity": 100,
    }
    # The theme's own fonts come from another server.
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    page.launch(server_name=config.server_name, server_port=port, share=config.share, theme=theme, css=CSS, **options)


def _require_gradio() -> None:
    try:
        import gradio  # noqa: F401
    except ImportError:
        raise ImportError('the page needs Gradio, which is not installed: pip install "contentmotion[demo]"') from None
