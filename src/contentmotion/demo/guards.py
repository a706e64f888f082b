"""What keeps visitors to what they may do: limits on what they send, files of their own alone, one-line errors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contentmotion.run_dir import is_out_of_memory

MAX_BODY = 2**20  # bytes of a request that is no upload
OVERHEAD = 2**16  # bytes around an upload


def uploaded_video(**settings: Any) -> gr.Video:
    """A ``gr.Video`` that takes what comes from the visitor's own disk, and no address to fetch a video from.

    Not a class of its own: Gradio writes a file beside the module of such a class.
    """
    video = gr.Video(sources=["upload"], **settings)
    take_file = video.async_move_resource_to_block_cache

    async def take(url_or_file_path: str | Path | None) -> str | None:
        if isinstance(url_or_file_path, str) and "://" in url_or_file_path:
            raise gr.Error("upload a file: addresses are not fetched", print_exception=False)
        return await take_file(url_or_file_path)

    video.async_move_resource_to_block_cache = take
    return video


class BodyLimit:
    """ASGI middleware that refuses requests larger than anything the page sends, and addresses to fetch files from.

    Args:
        app: What it protects.
        upload_bytes: Size of the largest upload.
    """

    def __init__(self, app: ASGIApp, upload_bytes: int) -> None:
        self.app = app
        self.upload_bytes = upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with 413 or 403."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        if "/file=http" in scope["path"].lower():
            refusal = JSONResponse({"detail": "addresses are not fetched"}, 403)
            return await refusal(scope, receive, send)
        limit = self.upload_bytes + OVERHEAD if scope["path"].rstrip("/").endswith("/upload") else MAX_BODY
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > limit:
            refusal = JSONResponse({"detail": f"request too large: at most {limit} bytes"}, 413)
            return await refusal(scope, receive, send)
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            # A body that does not say how long it is: cut off as if its sender had gone.
            return {"type": "http.disconnect"} if received > limit else message

        await self.app(scope, counted, send)


def reported(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a visitor's error reach the page as its one line; anything else stays in the server's terminal."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise gr.Error(" ".join(str(error).split()), print_exception=False) from None
        except Exception as error:
            if is_out_of_memory(error):
                raise gr.Error("out of memory: ask for fewer videos", print_exception=False) from None
            raise

    return wrapper
