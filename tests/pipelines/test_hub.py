"""Pipelines by hub id, from a hub whose answers are made here: the hub's own client asks, caches and complains."""

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import get_session
from huggingface_hub.utils._http import default_client_factory, hf_request_event_hook

from contentmotion import ContentMotionPipeline
from contentmotion.cli import main
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.stages.content import load_content
from tiny import make_content_dit, make_image_unet, make_patch_vae, make_pipeline

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One repository, me/model, of a folder's files.

    Attributes:
        fails: Status and error code of every answer, status 0 being none at all; None: it answers.
        asked: Files that were downloaded.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked, self.tokens = folder, [], set()
        self.fails: tuple[int, str] | None = None

    def answer(self, request: Any, http: Any) -> Any:
        path = request.url.path
        self.tokens.add(request.headers.get("authorization"))
        if self.fails:
            status, code = self.fails
            if not status:
                raise http.ConnectError(code)
            return http.Response(status, headers={"X-Error-Code": code, "X-Error-Message": code}, request=request)
        revision = (re.search(r"/(?:resolve|revision|tree)/([^/]+)", path) or ["", "main"])[1]
        if revision not in ("main", "v2", COMMIT):
            return http.Response(404, headers={"X-Error-Code": "RevisionNotFound"}, request=request)
        names = [str(file.relative_to(self.folder)) for file in self.folder.rglob("*") if file.is_file()]
        if "/tree/" in path:
            return http.Response(200, json=[{"type": "file", "path": n, "size": 1, "oid": n} for n in names])
        if path.startswith("/api/"):
            return http.Response(
                200, json={"id": "me/model", "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            )
        name = path.partition("/resolve/")[2].partition("/")[2]
        if name not in names:
            return http.Response(404, headers={"X-Error-Code": "EntryNotFound"}, request=request)
        data = (self.folder / name).read_bytes()
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{abs(hash(name))}"', "Content-Length": str(len(data))}
        if request.method == "HEAD":
            return http.Response(200, headers=headers, request=request)
        self.asked.append(name)
        return http.Response(200, headers=headers, content=data, request=request)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline in float32, and in halves beside it; with a pickle that nobody should ask for."""
    root = tmp_path_factory.mktemp("repository")
    pipe = make_pipeline()
    pipe.save_pretrained(root)
    pipe.to(torch.float16).save_pretrained(root, variant="fp16")
    (root / "unet/diffusion_pytorch_model.bin").write_bytes(b"pickle")
    return root


def test_halves_alone_need_no_variant(hub: Hub, tmp_path: Path) -> None:
    """As `export` in 16 bits and `push` leave them."""
    shutil.copytree(hub.folder, tmp_path / "halves")
    hub.folder = tmp_path / "halves"
    for weights in hub.folder.rglob("*.safetensors"):
        if "fp16" not in weights.name:
            weights.unlink()
    pipe = ContentMotionPipeline.from_pretrained("me/model", cache_dir=tmp_path / "cache")
    assert {part.dtype for part in (pipe.unet, pipe.autoencoder, pipe.motion_transformer)} == {torch.float32}
    here = ContentMotionPipeline.from_pretrained(hub.folder)
    for name in ("unet", "text_encoder", "motion_transformer"):
        weights = getattr(here, name).state_dict()
        assert all(torch.equal(weights[key], value) for key, value in getattr(pipe, name).state_dict().items()), name


@pytest.fixture
def hub(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    http = sys.modules[type(get_session()).__module__.partition(".")[0]]  # httpx or httpx2, by the client's version
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("contentmotion.loading.notice_no_network", lambda: None)  # it knocks at the real one's door
    one = Hub(repository)
    transport = http.MockTransport(lambda request: one.answer(request, http))
    hooks = {"request": [hf_request_event_hook]}  # asks nothing offline
    set_client_factory(lambda: http.Client(transport=transport, follow_redirects=True, event_hooks=hooks))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # between its tries
    yield one
    set_client_factory(default_client_factory)


def test_by_id(hub: Hub, tmp_path: Path) -> None:
    pipe = ContentMotionPipeline.from_pretrained("me/model", cache_dir=tmp_path, token="hf_secret")
    assert {part.dtype for part in (pipe.unet, pipe.autoencoder, pipe.motion_transformer)} == {torch.float32}
    assert "Bearer hf_secret" in hub.tokens
    weights = [name for name in hub.asked if not name.endswith((".json", ".txt"))]
    assert weights and not any("fp16" in name or name.endswith(".bin") for name in weights)
    pipe.set_progress_bar_config(disable=True)
    local = ContentMotionPipeline.from_pretrained(hub.folder)
    local.set_progress_bar_config(disable=True)
    one, other = (
        p("rocket", num_inference_steps=1, generator=torch.Generator().manual_seed(0), output_type="pt").frames
        for p in (pipe, local)
    )
    assert torch.equal(one, other)
    hub.asked.clear()
    again = ContentMotionPipeline.from_pretrained("me/model", cache_dir=tmp_path, local_files_only=True)
    assert hub.asked == [] and again.unet is not None


def test_variant_and_dtype(hub: Hub, tmp_path: Path) -> None:
    pipe = ContentMotionPipeline.from_pretrained(
        "me/model", cache_dir=tmp_path, variant="fp16", dtype=torch.float16, revision="v2"
    )
    assert {part.dtype for part in (pipe.unet, pipe.text_encoder, pipe.motion_transformer)} == {torch.float16}
    assert all("fp16" in name for name in hub.asked if name.endswith(".safetensors"))
    with pytest.raises(ValueError, match="^me/model has no variant bf16: there is fp16$"):
        ContentMotionPipeline.from_pretrained("me/model", cache_dir=tmp_path, variant="bf16")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there balanced places parts on it")
@pytest.mark.parametrize("device_map", ["cpu", "balanced"])
def test_device_map(repository: Path, device_map: str) -> None:
    """As diffusers places parts; without an accelerator "balanced" leaves them where they are."""
    mapped, plain = (ContentMotionPipeline.from_pretrained(repository, **s) for s in ({"device_map": device_map}, {}))
    assert mapped.hf_device_map == ("cpu" if device_map == "cpu" else None)
    frames = []
    for pipe in (mapped, plain):
        pipe.set_progress_bar_config(disable=True)
        asked = {"num_inference_steps": 1, "generator": torch.Generator().manual_seed(0), "output_type": "pt"}
        frames.append(pipe("rocket", **asked).frames)
    assert torch.equal(*frames)


def test_a_device_map_that_is_none(repository: Path) -> None:
    with pytest.raises(NotImplementedError, match="^auto not supported. Supported strategies are: balanced, .*cpu$"):
        ContentMotionPipeline.from_pretrained(repository, device_map="auto")


def test_the_command_line_names_a_revision_and_a_variant(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is exported in 16 bits says so in its files' names, and loads as any folder does."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    words = ["export", "--output_dir", str(out), "--variant", "fp16", "--pretrained_model_name_or_path"]
    for name, more, message in (
        ("me/model", ("--revision", "v9"), "me/model: the repository has no revision v9"),
        (str(hub.folder), ("--variant", "bf16"), "has no variant bf16: there is fp16"),
        (str(hub.folder), ("--revision", "v2"), "is a folder, the hub's repositories have revisions"),
    ):
        assert main([*words, name, *more]) == 1
        assert message in capsys.readouterr().err and not out.exists()
    assert main([*words, "me/model", "--revision", "v2"]) == 0
    assert all("fp16" in name for name in hub.asked if name.endswith(".safetensors"))
    files = list(out.rglob("*.safetensors"))
    assert files and all(file.name.endswith(".fp16.safetensors") for file in files)
    whole = ContentMotionPipeline.from_pretrained(hub.folder, variant="fp16")
    for pipe in (ContentMotionPipeline.from_pretrained(out), load_pipeline(str(out))):
        for name in ("unet", "text_encoder", "motion_transformer"):
            weights = getattr(pipe, name).state_dict()
            assert all(torch.equal(weights[key], v.float()) for key, v in getattr(whole, name).state_dict().items())


def test_info_is_of_the_hub_too(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    assert main(["info", "me/model", "--json"]) == 0
    there = json.loads(capsys.readouterr().out)
    assert main(["info", str(hub.folder), "--json"]) == 0
    here = json.loads(capsys.readouterr().out)
    assert there["flow"] == here["flow"] and there["parts"].keys() == here["parts"].keys()
    assert all(there["parts"][name]["class"] == part["class"] for name, part in here["parts"].items())


@pytest.mark.parametrize(
    ("fails", "settings", "message"),
    [
        ((404, "RepoNotFound"), {}, "no folder of that name and no such repository on the hub"),
        ((403, "GatedRepo"), {}, "gated: ask for access on its page"),
        (None, {"revision": "v9"}, "the repository has no revision v9"),
        (None, {"local_files_only": True}, "not downloaded yet, and only local files are to be used"),
        ((0, "no route to host"), {}, "not downloaded yet, and the hub could not be reached"),
    ],
)
def test_one_line_where_the_hub_does_not_give_it(
    hub: Hub, tmp_path: Path, fails: tuple[int, str] | None, settings: dict[str, Any], message: str
) -> None:
    hub.fails = fails
    with pytest.raises(ValueError, match=rf"^(no such checkpoint: )?me/model(: | \(){message}") as caught:
        ContentMotionPipeline.from_pretrained("me/model", cache_dir=tmp_path, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:The `local_dir_use_symlinks`")  # an argument of diffusers
@pytest.mark.parametrize("network", [make_image_unet, make_content_dit])
@pytest.mark.parametrize("vae", [None, make_patch_vae])
def test_the_content_model_of_an_id(
    hub: Hub, network: Any, vae: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no folder to look into: a pipeline's index says whether it is a model of pixels."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    hub.folder = tmp_path / "repository"
    pipe = make_pipeline(vae=vae and vae(), unet=network())
    pipe.save_pretrained(hub.folder)
    stage = load_content("me/model")
    assert (stage.components["vae"] is None) == (vae is None)
    weights = stage.network.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in pipe.unet.state_dict().items())


def test_offline_nothing_is_asked(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was downloaded loads, anything else is a line."""
    ContentMotionPipeline.from_pretrained("me/model", cache_dir=tmp_path / "full")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.fails = (500, "asked")
    hub.tokens.clear()
    assert ContentMotionPipeline.from_pretrained("me/model", cache_dir=tmp_path / "full").unet is not None
    with pytest.raises(ValueError, match=r"me/model \(not downloaded yet, and only local files are to be used\)$"):
        ContentMotionPipeline.from_pretrained("me/model", cache_dir=tmp_path / "empty")
    assert not hub.tokens
