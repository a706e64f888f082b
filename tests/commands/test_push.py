"""Command push: what it takes, what it lists, when it refuses; and one upload, to a hub on this machine."""

import json
import os
import shutil
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from contentmotion.cli import main


def fails(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["push", *words]) != 0
    error = capsys.readouterr().err
    assert error.startswith("contentmotion: error: ") and error.count("\n") == 1
    return error


def test_dry_run_lists_files_and_leaves_out_what_is_not_finished(
    tiny_pipeline_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    folder = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "pipe"))
    for name in (".hidden", "unet/.partial", "checkpoint-000001/random_states_0.pkl", "logs/events"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    assert main(["push", str(folder), "--repo_id", "me/model", "--dry_run"]) == 0
    text = capsys.readouterr().out
    assert "model me/model" in text and "unet/config.json" in text and "model_index.json" in text
    assert not any(word in text for word in ("hidden", "partial", "pkl", "events"))
    size = (folder / "unet/diffusion_pytorch_model.safetensors").stat().st_size
    assert f"{size / 1e6:.3f}" in text
    assert "No README.md" in text


def test_refusals(
    tiny_pipeline_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = str(tiny_pipeline_dir)
    assert "no such folder" in fails(capsys, str(tmp_path / "none"), "--repo_id=me/m")
    (tmp_path / "empty").mkdir()
    assert "holds no checkpoint" in fails(capsys, str(tmp_path / "empty"), "--repo_id=me/m")
    damaged = Path(shutil.copytree(tiny_pipeline_dir, tmp_path / "damaged"))
    (damaged / "unet/diffusion_pytorch_model.safetensors").write_bytes(b"half a file")
    assert "damaged file" in fails(capsys, str(damaged), "--repo_id=me/m", "--dry_run")
    assert "repository a b" in fails(capsys, pipe, "--repo_id", "a b")
    assert "owner/model" in fails(capsys, pipe, "--repo_id=model")
    assert "HF_HUB_OFFLINE is set" in fails(capsys, pipe, "--repo_id=me/m")  # as all tests have it


def test_a_training_that_could_not_push_is_refused_before_it_starts(
    clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that can pushes its result."""
    size = "--num_frames 4 --height 16 --width 16 --model.hidden_size 16 --model.depth 1 --model.num_heads 2"
    steps = "--max_train_steps 1 --train_batch_size 2 --validation_steps 0 --report_to none --model.head_dim 8"
    words = f"train-autoencoder --train_data_dir {clip_folder} --output_dir {tmp_path}/run {size} {steps}".split()
    assert main([*words, "--push_to_hub"]) == 2
    assert "--push_to_hub needs --hub_model_id" in capsys.readouterr().err
    words += ["--push_to_hub", "--hub_model_id", "me/model"]
    assert main(words) == 1
    assert "HF_HUB_OFFLINE is set" in capsys.readouterr().err and not (tmp_path / "run").exists()
    pushed = []
    monkeypatch.setattr("contentmotion.commands.push.require_access", lambda repo_id: None)
    monkeypatch.setattr("contentmotion.commands.push.push", pushed.append)
    assert main([*words, "--dry_run"]) == 0 and not pushed
    assert main(words) == 0
    assert [(one.folder, one.repo_id) for one in pushed] == [(f"{tmp_path}/run/autoencoder", "me/model")]
    assert (tmp_path / "run/autoencoder/config.json").is_file()


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as an upload of small files talks to; keeps what it is sent."""

    calls: list[tuple[str, Any]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        lines = [json.loads(line) for line in body.splitlines() if line.strip()]
        self.calls.append((self.path, lines))
        if self.path.endswith("/repos/create"):
            self._answer({"url": f"http://{self.headers['Host']}/me/model", "name": "me/model"})
        elif "/preupload/" in self.path:
            wanted = [file["path"] for file in lines[0]["files"]]
            self._answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in wanted]})
        else:
            address = f"http://{self.headers['Host']}/me/model/commit/1"
            self._answer({"commitUrl": address, "commitOid": "1", "hookOutput": ""})

    def do_GET(self) -> None:
        self._answer({"id": "me/model", "sha": "0", "siblings": []})

    def _answer(self, value: dict) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Silent."""


@pytest.fixture
def hub() -> Iterator[str]:
    """Address of a hub on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever)
    thread.start()
    Hub.calls.clear()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def push_as_process(endpoint: str, folder: Path, home: Path, token: str | None) -> subprocess.CompletedProcess[str]:
    """The hub's address is read when its library is imported: hence a process."""
    keep = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    env = keep | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    env |= {"HF_TOKEN": token} if token else {}
    words = [sys.executable, "-m", "contentmotion", "push", str(folder), "--repo_id", "me/model"]
    return subprocess.run(words, env=env, text=True, capture_output=True, timeout=280)


def test_upload(hub: str, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    """Its card's commands then call it by its name on the hub."""
    folder = Path(shutil.copytree(tiny_pipeline_dir / "autoencoder", tmp_path / "mine"))
    command = 'contentmotion generate "a prompt" --pretrained_model_name_or_path {}\r\n'
    lines = [command.format("'my own'"), 'pipe = ContentMotionPipeline.from_pretrained("my own")\n']
    others = 'vae = AutoencoderKL.from_pretrained("my own")\n`contentmotion train --pretrained_model_name_or_path x`\n'
    written = "# mine\r\n\n{}{}" + others
    (folder / "README.md").write_bytes(written.format(*lines).encode())
    done = push_as_process(hub, folder, tmp_path, "hf_" + "a" * 34)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"{hub}/me/model"
    create = next(body[0] for path, body in Hub.calls if path.endswith("/repos/create"))
    assert create["name"] == "model" and (create.get("private") is True or create.get("visibility") == "private")
    commit = next(body for path, body in Hub.calls if "/commit/" in path)
    assert commit[0]["value"]["summary"] == "Upload with contentmotion"
    sent = {line["value"]["path"]: b64decode(line["value"]["content"]) for line in commit[1:]}
    assert sent.keys() == {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}
    own = [command.format("me/model"), lines[1].replace("my own", "me/model")]
    assert sent["README.md"] == written.format(*own).encode()
    assert (folder / "README.md").read_bytes() == written.format(*lines).encode(), "the file is the user's"


def test_not_logged_in(hub: str, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    done = push_as_process(hub, tiny_pipeline_dir, tmp_path, None)
    wanted = "contentmotion: error: not logged in to the hub: run `hf auth login`, or put a token into HF_TOKEN\n"
    assert (done.returncode, done.stderr) == (1, wanted)
    assert not Hub.calls, "nothing was asked of the hub"


def test_unreachable(tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    done = push_as_process("http://127.0.0.1:1", tiny_pipeline_dir, tmp_path, "hf_" + "a" * 34)
    assert done.returncode == 1
    assert done.stderr.startswith("contentmotion: error: the hub could not be reached: ")
