"""What keeps visitors to what they may do: limits on what they send, files of their own alone, one-line errors."""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import re
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gradio as gr
from starlette.datastructures import Headers, QueryParams
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from contentmotion.config import DemoConfig
from contentmotion.demo.uploads import named_as_by_owner, require_room
from contentmotion.demo.visitors import Visitors
from contentmotion.run_dir import is_out_of_memory

MAX_BODY = 2**20  # bytes of a request that is no upload
OVERHEAD = 2**16  # bytes around an upload
STALLED = 60.0  # seconds without a byte of an upload, after which its sender has gone
# Whatever a page's text names, a visitor's browser asks no other server for it.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"


def uploaded_video(**settings: Any) -> gr.Video:
    """A ``gr.Video`` that takes what comes from the visitor's own disk, and no address to fetch a video from.

    Not a class of its own: Gradio writes a file beside the module of such a class.
    """
    video = gr.Video(sources=["upload"], **settings)
    _refuse_addresses(video)
    return video


def uploaded_picture(**settings: Any) -> gr.Image:
    """The same of a picture, which is handed on as the file that it is."""
    picture = gr.Image(sources=["upload"], type="filepath", image_mode=None, **settings)
    _refuse_addresses(picture)
    picture.preprocess = lambda payload: payload and payload.path  # Gradio's own opens it without limits
    return picture


def _refuse_addresses(component: gr.Video | gr.Image) -> None:
    take_file = component.async_move_resource_to_block_cache

    async def take(url_or_file_path: str | Path | None) -> str | None:
        if isinstance(url_or_file_path, str) and "://" in url_or_file_path:
            raise gr.Error("upload a file: addresses are not fetched", print_exception=False)
        return await take_file(url_or_file_path)

    component.async_move_resource_to_block_cache = take


class Gate:
    """ASGI middleware that lets in what the page itself sends: no other site's requests, no addresses to fetch files
    from, nothing larger than it has use for, and no more files than there is room for in ``folder``, where uploads and
    results go."""

    def __init__(self, app: ASGIApp, config: DemoConfig, folder: Path, visitors: Visitors) -> None:
        self.app = app
        self.config = config
        self.folder = folder
        self.visitors = visitors
        self.upload_bytes = int(config.max_upload_mb * 1e6) + OVERHEAD
        self.names = {"localhost", config.server_name.lower(), socket.gethostname().lower()}
        self.allowed = {name.lower() for name in config.allowed_hosts}
        self.arriving = 0  # bytes of the uploads that are under way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it with 403, 411, 413 or 507."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, headers = scope["path"], Headers(scope=scope)
        is_upload = path.rstrip("/").endswith("/upload")
        refusal = self._foreign(path, headers) or self._too_large(is_upload, headers)
        if refusal:
            detail, status = refusal
            return await JSONResponse({"detail": detail}, status)(scope, receive, send)
        limit, received = self.upload_bytes if is_upload else MAX_BODY, 0
        expected = int(headers.get("content-length", 0)) if is_upload else 0

        async def counted() -> Message:
            nonlocal received
            try:
                message = await asyncio.wait_for(receive(), STALLED if received < expected else None)
            except TimeoutError:
                return {"type": "http.disconnect"}
            received += len(message.get("body", b""))
            # A body that does not say how long it is: cut off as if its sender had gone.
            return {"type": "http.disconnect"} if received > limit else message

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"content-security-policy", POLICY.encode())]
            await send(message)

        self.arriving += expected
        try:
            with self.visitors.listening(path, dict(QueryParams(scope["query_string"]))):
                await self.app(scope, counted, with_policy)
        finally:
            self.arriving -= expected

    def _foreign(self, path: str, headers: Headers) -> tuple[str, int] | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_known(name := _name_in(f"//{host}")):
            return f"this page is not called {name}: contentmotion demo --allowed_hosts says what else it is", 403
        if origin is not None and origin.partition("//")[2] != host and _name_in(origin) not in self.allowed:
            return "a request from another page", 403
        if re.search("/file[=/]https?:", path.lower()):
            return "addresses are not fetched", 403
        return None

    def _is_known(self, name: str) -> bool:
        """Whether a Host header means this machine. Addresses of numbers do: it is names that others can point here."""
        try:
            return bool(ipaddress.ip_address(name))
        except ValueError:
            shared = self.config.share and name.endswith(".gradio.live")
            return shared or name in self.names | self.allowed

    def _too_large(self, is_upload: bool, headers: Headers) -> tuple[str, int] | None:
        declared = headers.get("content-length", "" if is_upload else "0")
        if not declared:
            return "an upload has to say how long it is", 411
        limit = self.upload_bytes if is_upload else MAX_BODY
        if not declared.isdecimal() or int(declared) > limit:
            return f"request too large: at most {limit} bytes", 413
        if is_upload:
            self._remove_leftovers()
            try:
                require_room(self.folder, self.config, self.arriving + int(declared))
            except ValueError as error:
                return str(error), 507
        return None

    def _remove_leftovers(self) -> None:
        """Deletes uploads that were broken off: nobody else knows of them."""
        for path in self.folder.glob("tmp*"):
            with suppress(FileNotFoundError):  # another request's, done just now
                if path.is_file() and time.time() - path.stat().st_mtime > self.config.keep_minutes * 60:
                    path.unlink()


def _name_in(url: str) -> str:
    """The host that an address names, in lower case; "" where it names none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def reported(function: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a visitor's error reach the page as its one line, which names files as their owner does; anything else stays
    in the server's terminal."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError) as error:
            raise gr.Error(named_as_by_owner(" ".join(str(error).split())), print_exception=False) from None
        except Exception as error:
            if is_out_of_memory(error):
                raise gr.Error("out of memory: ask for fewer videos", print_exception=False) from None
            raise

    return wrapper
