"""Pickles and modules with code in every place that a path reaches: none ever runs, whatever standard input says."""

import io
import json
import os
import pickle
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contentmotion.cli import main
from tiny import CLIPS

SIZES = [word for name, value in CLIPS.items() for word in (f"--{name}", str(value))]
TRAIN = ["--max_train_steps", "1", "--train_batch_size", "1", "--report_to", "none", "--validation_steps", "0"]
NARROW = ["--model.hidden_size", "16", "--model.depth", "1", "--model.num_heads", "2"]
ONE_STEP = ["--num_inference_steps", "1", "--guidance_scale", "1"]
DATA = ["--train_data_dir", "DATA", "--split", "null", *SIZES]
VIDEOS = ["--data_dir", "DATA", "--split", "null", *SIZES]
MODEL = "--pretrained_model_name_or_path"
# EVIL: a model's folder; FILE: a file; CLIPS, CACHE: folders of these; DATA, GOOD, LATENTS: sound ones beside them.
PLACES = [
    ["generate", "a", MODEL, "EVIL", *ONE_STEP],
    ["generate", "a", MODEL, "GOOD", "--autoencoder", "EVIL", *ONE_STEP],
    ["generate", "a", MODEL, "GOOD", "--autoencoder", "EVIL/autoencoder", *ONE_STEP],
    ["generate", "a", MODEL, "GOOD", "--motion_transformer", "EVIL", *ONE_STEP],
    ["generate", "a", MODEL, "GOOD", "--motion_transformer", "EVIL/motion_transformer", *ONE_STEP],
    ["generate", "a", MODEL, "GOOD", "--vae_decoder", "EVIL/vae", *ONE_STEP],
    ["generate", "a", "--config", "FILE"],
    ["generate", "--prompt_file", "FILE", MODEL, "GOOD", *ONE_STEP],
    ["generate", "a", MODEL, "GOOD", "--depth", "FILE"],
    ["generate", "a", MODEL, "GOOD", "--driving_video", "FILE", "--extract", "depth", "--depth_model", "EVIL"],
    ["reconstruct", "FILE", MODEL, "GOOD"],
    ["reconstruct", "DATA/videos/0.mp4", MODEL, "EVIL"],
    ["reconstruct", "DATA/videos/0.mp4", MODEL, "GOOD", "--autoencoder", "EVIL/autoencoder"],
    ["cut", "--train_data_dir", "CLIPS", *SIZES],
    ["train", "CLIPS", "--dry_run"],
    ["train", "DATA", "--image_model", "EVIL", "--dry_run"],
    ["train", "DATA", "--preset", "FILE", "--dry_run"],
    ["inspect", "--train_data_dir", "CLIPS", *SIZES],
    ["inspect", *DATA, "--metadata_path", "FILE"],
    ["inspect", *DATA, "--class_prompts", "FILE"],
    ["inspect", *DATA, "--vae", "EVIL", "--autoencoder", "EVIL/autoencoder"],
    ["encode", "--train_data_dir", "CLIPS", *SIZES, "--autoencoder", "GOOD/autoencoder"],
    ["encode", *DATA, "--autoencoder", "EVIL/autoencoder"],
    ["encode", *DATA, "--autoencoder", "GOOD/autoencoder", "--vae", "EVIL"],
    ["encode", *DATA, "--autoencoder", "GOOD/autoencoder", MODEL, "EVIL"],
    ["encode", *DATA, "--latents_only", "true", "--conditions", "depth", "--depth_model", "EVIL"],
    ["encode", *DATA, "--latents_only", "true", "--conditions", "depth", "--depth_dir", "CLIPS"],
    ["train-vae", "--train_data_dir", "CLIPS", *SIZES, *TRAIN],
    ["train-autoencoder", "--train_data_dir", "CLIPS", *SIZES, *TRAIN, *NARROW],
    ["train-autoencoder", *DATA, "--vae", "EVIL", *TRAIN, *NARROW],
    ["train-autoencoder", "--latent_cache", "CACHE", *SIZES, *TRAIN, *NARROW],
    ["train-autoencoder", *DATA[:4], "--height", "32", "--width", "32", "--perceptual.weight", "1",
     "--perceptual.lpips", "FILE", *TRAIN, *NARROW],
    ["train-content", "--latent_cache", "CACHE", *TRAIN],
    ["train-content", "--latent_cache", "LATENTS", MODEL, "EVIL", *TRAIN],
    ["train-content", "--latent_cache", "LATENTS", "--vae", "EVIL", *TRAIN],
    ["train-content", "--latent_cache", "LATENTS", MODEL, "GOOD", "--eval.autoencoder", "EVIL/autoencoder", *TRAIN],
    ["train-motion", "--latent_cache", "LATENTS", "--autoencoder", "EVIL/autoencoder", MODEL, "GOOD", *TRAIN,
     *NARROW],
    ["train-motion", "--latent_cache", "LATENTS", "--autoencoder", "GOOD/autoencoder", MODEL, "EVIL", *TRAIN],
    ["train-video", "--latent_cache", "CACHE", MODEL, "EVIL", *TRAIN],
    ["distill", "--part", "content", "--latent_cache", "LATENTS", MODEL, "EVIL", *TRAIN],
    ["distill", "--part", "motion", "--latent_cache", "CACHE", MODEL, "GOOD", *TRAIN],
    ["evaluate", *VIDEOS, MODEL, "EVIL", "--i3d", "FILE"],
    ["evaluate", *VIDEOS, "--generated_dir", "CLIPS", "--i3d", "FILE"],
    ["evaluate", *VIDEOS, "--generated_dir", "DATA", "--i3d", "FILE"],
    ["evaluate", *VIDEOS, "--generated_dir", "DATA", "--i3d", "FILE", "--lpips", "FILE", "--clip", "EVIL"],
    ["evaluate", *VIDEOS, "--generated_dir", "DATA", "--i3d", "FILE", "--depth_model", "EVIL"],
    ["evaluate", "--compare", "FILE", "FILE"],
    ["export", MODEL, "EVIL"],
    ["export", MODEL, "GOOD", "--scores", "FILE"],
    ["benchmark", "EVIL", "--meta"],
    ["info", "EVIL"],
    ["info", "CACHE"],
    ["info", "FILE"],
    ["report", "EVIL"],
]  # fmt: skip


class Canary:
    """What unpickles it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (str(self.path), 0o777, True)


@pytest.fixture(scope="module")
def latents(tiny_pipeline_dir: Path, clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound cache of the tiny pipeline's content frames and motion latents."""
    folder = tmp_path_factory.mktemp("latents") / "cache"
    words = ["encode", "--train_data_dir", str(clip_folder), "--autoencoder", str(tiny_pipeline_dir / "autoencoder")]
    assert main([*words, *SIZES, "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module", params=["pickles", "code"])
def nest(
    request: pytest.FixtureRequest,
    tiny_pipeline_dir: Path,
    clip_folder: Path,
    latents: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Folders with a canary in every place: pickles under all names of weights, or modules that classes are from."""
    root = tmp_path_factory.mktemp("nest")
    song, module = (
        pickle.dumps(Canary(root / "sang")),
        f"import os\nos.makedirs({str(root / 'sang')!r}, exist_ok=True)\n",
    )
    shutil.copytree(tiny_pipeline_dir, root / "EVIL")
    shutil.copytree(root / "EVIL/autoencoder", root / "EVIL/vae")
    shutil.copytree(clip_folder, root / "CLIPS")
    shutil.copytree(latents, root / "CACHE")
    folders = [root / "EVIL", *(path for path in (root / "EVIL").iterdir() if path.is_dir())]
    if request.param == "pickles":
        (root / "FILE").write_bytes(song)
        weights = [*root.rglob("*.safetensors"), *root.rglob("*.mp4"), *root.rglob("metadata.jsonl")]
        stems = ("diffusion_pytorch_model", "pytorch_model", "model", "optimizer", "training_args", "clip", "metadata")
        for path in [*weights, *(f / f"{stem}.pkl" for f in folders for stem in stems)]:
            path.write_bytes(song)
        for path in (
            folder / f"{stem}.{suffix}" for folder in folders for stem in stems for suffix in ("bin", "pt", "ckpt")
        ):
            torch.save(Canary(root / "sang"), path)
        np.save(root / "CLIPS/clip.npy", np.array([Canary(root / "sang")], dtype=object), allow_pickle=True)
        return root
    (root / "FILE").write_text(f"seed: !!python/object/apply:os.makedirs [{root / 'sang'}]\n")
    for folder in [*folders, root / "CLIPS", root / "CACHE"]:
        for name in ("evil.py", "pipeline.py", "modeling_evil.py", "configuration_evil.py", "__init__.py", "CLIPS.py"):
            (folder / name).write_text(module)
        for file in folder.glob("*config.json"):
            settings = json.loads(file.read_text())
            kinds = ("AutoConfig", "AutoModel", "AutoModelForDepthEstimation", "AutoTokenizer", "AutoImageProcessor")
            settings |= {"auto_map": {kind: "evil.Evil" for kind in kinds}, "custom_pipeline": "evil"}
            if folder.name not in ("autoencoder", "scheduler"):  # some keep their class, and are read
                settings |= {"_class_name": ["evil", "Evil"], "model_type": "evil", "tokenizer_class": "Evil"}
            file.write_text(json.dumps(settings))
    (root / "EVIL/config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}))
    (root / "EVIL/preprocessor_config.json").write_text(json.dumps({"auto_map": {"AutoImageProcessor": "evil.Evil"}}))
    index = json.loads((root / "EVIL/model_index.json").read_text())
    index |= {"_class_name": ["evil", "Evil"], "unet": ["evil", "Evil"], "feature_extractor": ["evil", "Evil"]}
    (root / "EVIL/model_index.json").write_text(json.dumps(index))
    return root


@pytest.mark.parametrize("words", PLACES, ids=lambda words: " ".join(word for word in words[:12] if word not in SIZES))
def test_nothing_sings(
    words: list[str], nest: Path, tiny_pipeline_dir: Path, clip_folder: Path, latents: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 100))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.chdir(tmp_path)
    sound = {"GOOD": tiny_pipeline_dir, "DATA": clip_folder, "LATENTS": latents}
    places = sound | {name: nest / name for name in ("EVIL", "FILE", "CLIPS", "CACHE")}
    words = [str(places[w.split("/")[0]] / w.partition("/")[2]) if w.split("/")[0] in places else w for w in words]
    if words[0] not in ("info", "report"):
        words += ["--output_dir", str(tmp_path / "out")]
    status = main(words)
    said = capsys.readouterr().err
    assert not (nest / "sang").exists(), words
    assert status in (0, 1, 2) and "Traceback" not in said, said


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "words",
    # Others are refused for something else before.
    [w for w in PLACES if "FILE" in w and not {"--depth", "--extract", "--perceptual.lpips", "CLIPS"} & set(w)],
    ids=lambda w: " ".join(w[:1] + w[-2:]),
)
def test_no_pipe_is_waited_for(
    words: list[str], tiny_pipeline_dir: Path, clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "FILE")
    places = {"FILE": tmp_path / "FILE", "GOOD": tiny_pipeline_dir, "EVIL": tiny_pipeline_dir, "DATA": clip_folder}
    words = [str(places[word]) if word in places else word.replace("DATA/", f"{clip_folder}/") for word in words]
    status = main(words if words[0] == "info" else [*words, "--output_dir", str(tmp_path / "out")])
    said = capsys.readouterr().err
    assert status in (1, 2) and str(tmp_path / "FILE") in said and "Traceback" not in said, said


def test_every_command_that_takes_a_path_is_here() -> None:
    from contentmotion.cli import COMMANDS

    assert {words[0] for words in PLACES} == COMMANDS.keys() - {"demo", "push"}


def test_they_can_sing(nest: Path) -> None:
    if (nest / "EVIL/evil.py").exists():
        runpy.run_path(str(nest / "EVIL/evil.py"))
    else:
        pickle.loads((nest / "FILE").read_bytes())
        assert (nest / "sang").exists()
        (nest / "sang").rmdir()
        torch.load(nest / "EVIL/unet/model.bin", weights_only=False)
    assert (nest / "sang").exists()
    (nest / "sang").rmdir()
