"""What the page refuses, and whom it stops waiting for, without a server."""

import asyncio
import os
import time
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import pytest
from gradio.data_classes import PredictBodyInternal

from contentmotion.config import DemoConfig
from contentmotion.demo import checkpoint_tab, guards, visitors
from contentmotion.demo.generate_tab import Runs
from contentmotion.demo.guards import Gate, reported
from contentmotion.demo.studio import Model, Request, Studio
from contentmotion.demo.visitors import LEFT, MODEL, ONE_JOB, Visitors, at_times

# Gradio leaves event loops open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def ask(folder: Path, method: str, path: str, body=None, config: DemoConfig | None = None, **headers: str):
    """What the gate answers; 200 where it lets a request through, which then reads it all."""

    async def app(scope, receive, send) -> None:
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(Gate(app, config or DemoConfig(), folder, Visitors()))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:7860") as client:
            return await client.request(method, path, content=body, headers=headers)

    return asyncio.run(call())


def test_other_names_and_other_pages_are_refused(tmp_path: Path) -> None:
    named = DemoConfig(allowed_hosts=("Demo.lab.org",))
    for host in ("127.0.0.1:7860", "localhost:7860", "[::1]:7860", "192.168.0.7"):
        assert ask(tmp_path, "GET", "/", host=host).status_code == 200, host
    answer = ask(tmp_path, "GET", "/", host="evil.example:7860")
    assert (answer.status_code, "evil.example" in answer.json()["detail"]) == (403, True)
    assert ask(tmp_path, "GET", "/", config=named, host="demo.lab.org").status_code == 200
    for host in ("[", "evil.gradio.live"):
        assert ask(tmp_path, "GET", "/", host=host).status_code == 403, host
    for path in ("/gradio_api/file=https://evil.example/x", "/gradio_api/file/https://evil.example/x"):
        assert ask(tmp_path, "GET", path).status_code == 403, path
    upload = {"method": "POST", "path": "/gradio_api/upload", "body": b"x"}
    origins = {"http://127.0.0.1:7860": 200, "http://127.0.0.1:8000": 403, "https://evil.example": 403, "null": 403}
    origins["https://demo.lab.org"] = 403
    assert {origin: ask(tmp_path, **upload, origin=origin).status_code for origin in origins} == origins
    assert ask(tmp_path, **upload, config=named, origin="https://demo.lab.org").status_code == 200
    shared = DemoConfig(share=True)
    assert ask(tmp_path, "GET", "/", config=shared, host="mine.gradio.live").status_code == 200
    assert ask(tmp_path, **upload, config=shared, origin="https://evil.gradio.live").status_code == 403


def test_an_upload_that_stalls_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "STALLED", 0.05)
    seen: list[str] = []

    async def app(scope, receive, send) -> None:
        seen.append((await receive())["type"])

    async def silence():
        await asyncio.sleep(30)

    scope = {"type": "http", "path": "/gradio_api/upload", "query_string": b""}
    scope["headers"] = [(b"host", b"localhost"), (b"content-length", b"9")]
    gate = Gate(app, DemoConfig(), tmp_path, Visitors())
    asyncio.run(asyncio.wait_for(gate(scope, silence, silence), 5))  # type: ignore[arg-type]
    assert (seen, gate.arriving) == (["http.disconnect"], 0)


def test_uploads_have_a_length_a_limit_and_a_sum(tmp_path: Path) -> None:
    async def pieces():
        yield b"x"

    config = DemoConfig(max_upload_mb=0.1, max_disk_mb=1.0, keep_minutes=1)
    upload = {"method": "POST", "path": "/gradio_api/upload", "config": config}
    assert ask(tmp_path, **upload, body=pieces()).status_code == 411
    assert ask(tmp_path, **upload, body=bytes(200_000)).status_code == 413
    assert ask(tmp_path, **upload, body=b"x", **{"content-length": "²".encode("latin-1")}).status_code == 413
    assert ask(tmp_path, **upload, body=bytes(90_000)).status_code == 200
    (tmp_path / "results").mkdir()
    (tmp_path / "results/video.mp4").write_bytes(bytes(950_000))
    answer = ask(tmp_path, **upload, body=bytes(90_000))
    assert (answer.status_code, "no room for more files" in answer.json()["detail"]) == (507, True)
    broken_off, young = tmp_path / "tmpabc", tmp_path / "tmpdef"
    for path in (broken_off, young):
        path.touch()
    os.utime(broken_off, (time.time() - 120,) * 2)
    ask(tmp_path, **upload, body=b"x")
    assert (broken_off.exists(), young.exists()) == (False, True)


def test_no_other_server_is_asked_for_what_a_model_card_names(tmp_path: Path) -> None:
    policy = ask(tmp_path, "GET", "/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self' ") and "http" not in policy and "*" not in policy
    text = "---\ntags: x\n---\nA ![cat](https://evil.example/c.png) and ![dog][d] <img src='//evil.example/'> [a](b.md) [u](https://x.org)"
    (tmp_path / "README.md").write_text(text)
    model = Model("m", str(tmp_path), None)  # type: ignore[arg-type]
    assert checkpoint_tab._card(model) == "A cat and dog  a [u](https://x.org)"


def test_errors_name_files_as_their_owner_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "/tmp/page-x")

    @reported
    def fail() -> None:
        raise ValueError(
            "cannot use /tmp/page-x/0a1b/my cat.png: no picture,\nnot /tmp/page-x/results/f00/b.mp4 either"
        )

    with pytest.raises(gr.Error) as caught:
        fail()
    assert caught.value.message == "cannot use my cat.png: no picture, not b.mp4 either"


@pytest.fixture
def watched() -> tuple[Visitors, gr.queueing.Queue]:
    """Visitors of a queue that nobody works at."""
    with gr.Blocks() as page:
        gr.Button().click(lambda: None, api_name="generate", **MODEL)
    page.queue(max_size=4)
    watch = Visitors()
    watch.watch(page._queue)
    return watch, page._queue


def push(queue, session: str) -> str:
    body = PredictBodyInternal(fn_index=0, data=[], session_hash=session)
    done, message, _ = asyncio.run(queue.push(body=body, request=None, username=None))
    return "queued" if done else message


def test_one_job_a_visitor_and_none_for_nobody(watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, queue = watched
    assert [push(queue, name) for name in ("first", "second", "first")] == ["queued", "queued", ONE_JOB]
    now = time.monotonic() + visitors.HURRY + 1
    monkeypatch.setattr(visitors, "monotonic", lambda: now)
    with watch.listening("/gradio_api/queue/data", {"session_hash": "second"}):
        assert push(queue, "third") == "queued"
        waiting = [event.session_hash for event in queue.event_queue_per_concurrency_id["model"].queue]
        assert waiting == ["second", "third"], "nobody listens to the first one"
    assert push(queue, "second") == ONE_JOB, "it has only just stopped listening"


def test_a_job_ends_when_its_visitor_leaves(watched, monkeypatch: pytest.MonkeyPatch) -> None:
    watch, queue = watched
    push(queue, "a")
    event = queue.event_queue_per_concurrency_id["model"].queue.pop()
    queue.active_jobs = [[event]]
    assert not watch.has_left("a")
    now = time.monotonic() + visitors.PATIENCE + 1
    monkeypatch.setattr(visitors, "monotonic", lambda: now)
    with watch.listening(f"/gradio_api/call/generate/{event._id}", {}):
        assert not watch.has_left("a")
        event.alive = False  # as Gradio notes of a stream that is closed
        assert watch.has_left("a")
    event.alive = True
    monkeypatch.setattr(visitors, "monotonic", lambda: now + visitors.PATIENCE)
    assert watch.has_left("a")

    class Slow:
        models = [SimpleNamespace(distilled=False)]

        def generate(self, request, model, on_step) -> None:
            for step in range(1, 10):
                on_step(step, 9)
            raise AssertionError("nothing ended it")

    runs = Runs(Slow(), watch)  # type: ignore[arg-type]
    with pytest.raises(gr.Error, match=LEFT):
        runs.make(Request(prompt="x"), False, [], "a", lambda *_, **__: None)  # type: ignore[arg-type]
    runs.stop(SimpleNamespace(session_hash="b"))  # type: ignore[arg-type]
    shown = runs.make(Request(prompt="x"), False, [], "b", lambda *_, **__: None)  # type: ignore[arg-type]
    assert shown[3] == "Stopped after 1 of 9 steps.", "no error"


def test_progress_is_told_no_more_often_than_it_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand steps a second are ten messages, the first and the last among them."""
    now, told = [0.0], []
    monkeypatch.setattr("contentmotion.demo.visitors.monotonic", lambda: now[0])
    show = at_times(lambda done, desc, unit: told.append((*done, desc, unit)))
    for step in range(1, 1001):
        now[0] = step / 1000
        show(step, 1000, "denoising")
    assert 10 <= len(told) <= 12 and told[0] == (1, 1000, "denoising", "steps") and told[-1][0] == 1000


def test_a_second_model_of_no_name_is_none(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    config = DemoConfig(pretrained_model_name_or_path=str(tiny_pipeline_dir), compare_with="", device="cpu")
    assert [model.name for model in Studio(config, tmp_path).models] == ["pipeline"]
