"""The page's endpoints through gradio_client, and what it refuses."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from contentmotion.video.reader import read_video
from contentmotion.video.write import read_metadata

ASK = {
    "prompt": "rocket",
    "negative_prompt": "",
    "seed": 7,
    "steps": 2,
    "guidance_scale": 4,
    "motion_guidance_scale": 1,
    "few_steps": False,
    "num_videos": 1,
    "same_content": False,
}
START = ["image", "video", "motion_video", "strength", "motion_strength", "num_frames", "loop"]


@pytest.fixture
def client(page, tmp_path: Path) -> Client:
    return connect(page, tmp_path)


def connect(page, folder: Path) -> Client:
    slow = {"timeout": 120}  # a machine that has more to do
    return Client(page.url, verbose=False, download_files=str(folder), analytics_enabled=False, httpx_kwargs=slow)


def generate(client: Client, **changes) -> tuple:
    return client.predict(**ASK | changes, api_name="/generate")


def fails(client: Client, endpoint: str, **inputs) -> str:
    with pytest.raises(Exception) as caught:
        client.predict(**inputs, api_name=endpoint)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_endpoints_are_named_and_explained(client: Client, page) -> None:
    found = client.view_api(return_format="dict", print_info=False)
    assert isinstance(found, dict)
    endpoints = found["named_endpoints"]
    assert set(endpoints) == {"/generate", "/decompose", "/swap", "/compare", "/checkpoint"}
    for name, endpoint in endpoints.items():
        assert endpoint["description"], name
    names = [parameter["parameter_name"] for parameter in endpoints["/generate"]["parameters"]]
    assert names == [*ASK, *START]
    assert all(parameter["parameter_has_default"] for parameter in endpoints["/generate"]["parameters"])


def test_generate(client: Client) -> None:
    video, content, files, summary = generate(client, num_videos=2)
    assert read_video(video).frames.shape == (4, 16, 16, 3)
    with Image.open(content) as picture:
        assert picture.size == (16, 16)
    assert [Path(file).suffix for file in files] == [".mp4", ".gif", ".png"] * 2
    assert summary.startswith("2 videos in ") and summary.endswith("2 + 2 steps, 6 network passes a video")
    for file in (video, content, files[1]):
        found = read_metadata(file)
        assert found["generated"].startswith("by a model")
        assert (found["model"], found["prompt"], found["seed"]) == ("pipeline", "rocket", "7")
    again = generate(client)
    assert Path(again[0]).read_bytes() == Path(video).read_bytes(), "the same seed, the same video"


def test_several_motions_of_one_content_frame(client: Client) -> None:
    _, _, files, _ = generate(client, num_videos=3, same_content=True)
    contents = [np.asarray(Image.open(file)) for file in files[2::3]]
    videos = [read_video(file).frames.astype(int) for file in files[0::3]]
    assert all(np.abs(contents[0].astype(int) - other).max() <= 1 for other in contents[1:])
    assert all(np.abs(videos[0] - other).mean() > 1 for other in videos[1:])


def test_animate_a_picture(client: Client, uploads: dict[str, Path]) -> None:
    _, _, files, summary = generate(client, prompt="", image=handle_file(uploads["picture"]), strength=0, num_videos=2)
    frames = [np.asarray(Image.open(file).convert("RGB")).astype(int) for file in files[2::3]]
    assert np.abs(frames[0] - frames[1]).max() <= 1 and np.abs(frames[0] - [250, 100, 20]).mean() < 5, "the picture"
    videos = [read_video(file).frames.astype(int) for file in files[0::3]]
    assert np.abs(videos[0] - videos[1]).mean() > 1, "two motions of it"
    assert (
        summary.endswith("; picture.png: 40x24 pixels, cut to the shape of 16x16")
        and "0 + 2 steps, 2 network" in summary
    )
    assert Path(files[0]).name == "000-picture-seed7.mp4" and Path(files[3]).name == "001-picture-seed7.mp4"
    assert read_metadata(files[0])["image"] == "picture.png"


def test_edit_a_video_and_take_its_motion(client: Client, uploads: dict[str, Path]) -> None:
    good, other = handle_file(uploads["good"]), handle_file(uploads["other"])
    edited = [generate(client, video=good, strength=0.5, motion_strength=m)[0] for m in (0, 1)]
    videos = [read_video(file).frames.astype(int) for file in edited]
    assert np.abs(videos[0] - videos[1]).mean() > 1, "another motion of the same scene"
    moved = [generate(client, motion_video=video)[0] for video in (good, other)]
    assert np.abs(np.subtract(*(read_video(file).frames.astype(int) for file in moved))).mean() > 0.1


def test_longer_videos_and_loops(client: Client) -> None:
    video, _, _, summary = generate(client, num_frames=12)
    assert len(read_video(video).frames) == 12
    assert "2 + 2 steps, 14 network passes a video; 12 frames: 5 clips of 4, they overlap" in summary
    assert len(read_video(generate(client, num_frames=8, loop=True)[0]).frames) == 8


def test_few_steps(client: Client) -> None:
    _, _, files, summary = generate(client, steps=4, guidance_scale=1, few_steps=True)
    assert summary.endswith("4 + 4 steps, 8 network passes a video")
    assert read_metadata(files[0])["model"] == "few-step"


def test_decompose_and_swap(client: Client, uploads: dict[str, Path]) -> None:
    video = handle_file(uploads["good"])
    both, content, weights, across, down, text = client.predict(video=video, frame_stride=2, api_name="/decompose")
    assert read_video(both).frames.shape == (4, 16, 32, 3)
    # The planes: 4 channels of 8 places x 4 times and of 4 times x 8 places, lines between them, 6 pixels a value.
    for file, size in ((content, (16, 16)), (across, (6 * (4 * 4 + 3), 6 * 8)), (down, (6 * (4 * 8 + 3), 6 * 4))):
        with Image.open(file) as picture:
            assert picture.size == size
    with Image.open(weights) as picture:
        assert picture.size == (8 * 100 - 4, 2 * 96 + 4)
    assert text.startswith("PSNR ")
    inputs = {"content_video": video, "motion_video": handle_file(uploads["other"])}
    frames = read_video(client.predict(**inputs, api_name="/swap")).frames.astype(int)
    assert frames.shape == (4, 16, 48, 3)
    assert np.abs(frames[:, :, :16, 2] - frames[:, :, 16:32, 2]).mean() > 100, "the two clips' blue differs"


def test_compare_and_checkpoint(client: Client, page) -> None:
    sides = {"model_a": "pipeline", "steps_a": 8, "guidance_scale_a": 4}
    sides |= {"model_b": "few-step", "steps_b": 2, "guidance_scale_b": 1}
    first, second, table = client.predict(prompt="rocket", seed=3, **sides, api_name="/compare")
    assert read_video(first).frames.shape == read_video(second).frames.shape == (4, 16, 16, 3)
    rows = [row[:4] for row in table["data"]]
    assert rows == [["A", "pipeline", "8 + 8", "24"], ["B", "few-step", "2 + 2", "4"]]
    assert all(float(row[4]) > 0 for row in table["data"])
    flow, parts, costs, card = client.predict(model="few-step", api_name="/checkpoint")
    assert "few-step (distilled)" in flow and "motion latent 4 x 4 x (8 + 8)" in flow
    assert "MotionDiT" in [row[1] for row in parts["data"]]
    assert costs["data"][-1][0] == "in all (4 + 4 steps, 8 network passes)"
    assert card == "This model has no model card (README.md)."


def test_steps_are_those_of_the_model_that_is_asked(client: Client) -> None:
    """Whatever the page itself begins with."""
    most = {part["props"].get("label"): part["props"].get("maximum") for part in client.config["components"]}
    assert (most["Steps"], most["Steps A"], most["Steps B"]) == (20, 20, 8), "the second model is a distilled one"
    ask = {"prompt": "rocket", "seed": 3, "model_a": "few-step", "steps_a": 2, "guidance_scale_a": 1}
    ask |= {"model_b": "pipeline", "guidance_scale_b": 1, "api_name": "/compare"}
    *_, table = client.predict(**ask, steps_b=9)
    assert [row[2] for row in table["data"]] == ["2 + 2", "9 + 9"]
    with pytest.raises(AppError, match="^steps must be a whole number between 1 and 20, got 21$"):
        client.predict(**ask, steps_b=21)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "  "}, "empty prompt: say what to show"),
        ({"prompt": "x" * 61}, "the prompt has 61 characters; at most 60 are taken here"),
        ({"negative_prompt": "x" * 61}, "the negative prompt has 61 characters"),
        ({"seed": 2**31}, "2147483648"),
        ({"steps": 21}, "steps must be a whole number between 1 and 20, got 21"),
        ({"steps": 9, "few_steps": True}, "steps of a few-step model must be a whole number between 1 and 8, got 9"),
        ({"num_videos": 5}, "5"),
        ({"guidance_scale": 1e9}, "1000000000.0"),
        ({"strength": 1.5}, "1.5"),
        ({"num_frames": 10**6}, "1000000"),
        ({"prompt": "", "image": "no-video"}, "no-video.mp4: not a readable picture"),
        ({"video": "long"}, "long.mp4 is too long: 8 s, at most 5 s are taken; cut it first"),
        ({"motion_video": "no-video"}, "cannot use no-video.mp4: not a readable video"),
        ({"video": "short"}, "shorter than a clip: short.mp4: 3 frames, 4 needed"),
        ({"image": "picture", "video": "good"}, "give one of them, each is what is shown"),
        ({"video": "good", "strength": 0}, "strength 0 and motion_strength 0 give the video back as it is"),
        (
            {"motion_video": "good", "same_content": True, "num_videos": 2},
            "one content frame and one motion make one video",
        ),
    ],
)
def test_requests_beyond_the_limits(changes: dict, message: str, client: Client, uploads: dict[str, Path]) -> None:
    files = {name: handle_file(uploads[changes[name]]) for name in START[:3] if name in changes}
    found = fails(client, "/generate", **ASK | changes | files)
    assert message in found
    assert "contentmotion-demo-" not in found, "no path of the server"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-video", "cannot use no-video.mp4: not a readable video"),
        ("long", "long.mp4 is too long: 8 s, at most 5 s are taken; cut it first"),
        ("short", "cannot use short.mp4: 3 frames, 4 needed"),
    ],
)
def test_bad_uploads(name: str, message: str, client: Client, uploads: dict[str, Path]) -> None:
    found = fails(client, "/decompose", video=handle_file(uploads[name]), frame_stride=1)
    assert message in found
    assert "contentmotion-demo-" not in found, "no path of the server"


def test_an_upload_that_is_too_large(client: Client, page, uploads: dict[str, Path]) -> None:
    with uploads["large"].open("rb") as file:
        answer = httpx.post(f"{page.url}gradio_api/upload", files={"files": file})
    assert answer.status_code == 413
    found = fails(client, "/decompose", video=handle_file(uploads["large"]), frame_stride=1)
    assert "large.mp4 exceeds the maximum file size of 1000000 bytes" in found


def test_requests_that_are_too_large(page) -> None:
    answer = httpx.post(f"{page.url}gradio_api/queue/join", content=b"x" * (2**20 + 1))
    assert (answer.status_code, answer.json()["detail"]) == (413, "request too large: at most 1048576 bytes")


def test_no_file_beyond_its_own_folder(page, tmp_path: Path, tiny_pipeline_dir: Path) -> None:
    """What a client asks for as if it were an upload of its own, or as an address to read from."""
    (tmp_path / "secret.mp4").write_bytes(b"secret")
    places = ["../../etc/passwd", "/etc/passwd", str(tmp_path / "secret.mp4"), str(Path.cwd() / "README.md")]
    places += [str(tiny_pipeline_dir / "model_index.json"), "http://127.0.0.1:9/video.mp4", "file:///etc/passwd"]
    with httpx.Client(base_url=f"{page.url}gradio_api/", timeout=60) as web:
        for place in places:
            assert web.get(f"file={place}").status_code in (403, 404), place
            file = {"path": place, "meta": {"_type": "gradio.FileData"}}
            asked = {"decompose": [file, 1], "generate": [*ASK.values(), file, None, None, 0.5, 0, 4, False]}
            for endpoint, data in asked.items():
                event = web.post(f"call/{endpoint}", json={"data": data}).json()["event_id"]
                answer = web.get(f"call/{endpoint}/{event}").text
                assert "event: error" in answer, place
                assert "secret" not in answer.replace("secret.mp4", "") and "root:" not in answer, place


def test_private_functions_and_shortcuts_past_the_queue_are_closed(page) -> None:
    for path in ("api/generate", "run/predict", "api/predict"):
        answer = httpx.post(f"{page.url}gradio_api/{path}", json={"data": list(ASK.values()), "fn_index": 0})
        assert answer.status_code >= 400, path
    assert httpx.get(f"{page.url}monitoring").status_code >= 400


def test_uploads_and_results_stay_in_one_folder_that_goes(
    tiny_pipeline_dir: Path, tmp_path: Path, uploads: dict[str, Path], serve_page
) -> None:
    temp = tmp_path / "temp"
    temp.mkdir()
    with serve_page(temp, f"--pretrained_model_name_or_path={tiny_pipeline_dir}") as page:
        client = connect(page, tmp_path / "client")
        generate(client)
        client.predict(video=handle_file(uploads["good"]), frame_stride=1, api_name="/decompose")
        (folder,) = temp.iterdir()
        assert (folder.name.startswith("contentmotion-demo-"), folder.stat().st_mode & 0o077) == (True, 0)
        kinds = [path.suffix for path in folder.rglob("*") if path.is_file()]
        assert kinds.count(".mp4") >= 2 + 1 + 1 + 1, "examples, generated, uploaded, reconstruction"
        assert client.config["analytics_enabled"] is False
    assert page.process.returncode == 130
    assert not list(temp.iterdir())


def test_load(page, tmp_path: Path) -> None:
    """20 visitors at once: each is answered, or told that the queue is full; the memory comes back."""
    clients = [connect(page, tmp_path) for _ in range(20)]
    generate(clients[0])  # what is loaded once is loaded
    server = psutil.Process(page.process.pid)
    before = server.memory_info().rss

    def ask(number: int) -> str:
        try:
            return generate(clients[number], seed=number, steps=4)[0]
        except Exception as error:
            return repr(error)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(ask, range(20)))
    refused = [answer for answer in answers if "queue is full" in answer.lower()]
    made = [answer for answer in answers if answer.endswith(".mp4")]
    assert len(made) + len(refused) == 20, json.dumps(answers, indent=1)
    assert len(made) >= 4 and refused
    assert all(read_video(path).frames.shape == (4, 16, 16, 3) for path in made)
    generate(clients[1])
    assert server.memory_info().rss - before < 100e6
