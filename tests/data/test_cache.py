"""The latent cache: what encode writes, what is left out, what is refused, what is read when shards are lost."""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from contentmotion.cli import main
from contentmotion.commands.encode import encode
from contentmotion.config import AutoencoderSizes, EncodeConfig, MotionSizes, TrainAutoencoderConfig, TrainMotionConfig
from contentmotion.data.cache import LatentCache, Shard, collate_latents, hash_tensors, open_cache
from contentmotion.data.clips import ClipDataset, open_clips
from contentmotion.loading import load_autoencoder, load_vae
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.saving import hash_weights
from contentmotion.stages.motion import MotionStage
from contentmotion.stages.stage import make_scheduler
from contentmotion.stages.text import encode_prompts
from contentmotion.train.autoencoder import train_autoencoder
from contentmotion.train.motion import train_motion
from contentmotion.video.pixels import to_float
from contentmotion.video.timeline import SlowVideoError
from tiny import NARROW, STEPS, make_autoencoder, make_motion_dit


@pytest.fixture(scope="session")
def autoencoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny autoencoder on pixels, with random weights in every layer."""
    model = make_autoencoder(0.2)
    folder = tmp_path_factory.mktemp("models") / "autoencoder"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def config(clip_folder: Path, autoencoder_dir: Path, tmp_path: Path) -> EncodeConfig:
    """Four clips of 4 frames at 16x16, three shards at most two clips each time."""
    return EncodeConfig(
        train_data_dir=str(clip_folder), num_frames=4, height=16, width=16, clips_per_shard=2, encode_batch_size=2,
        autoencoder=str(shutil.copytree(autoencoder_dir, tmp_path / "autoencoder")), output_dir=str(tmp_path / "cache"),
    )  # fmt: skip


def index_of(cache_dir: str | Path) -> dict:
    return json.loads((Path(cache_dir) / "index.json").read_text())


def test_cache_holds_what_the_autoencoder_makes(config: EncodeConfig) -> None:
    encode(config)
    cache, clips = LatentCache(config.output_dir), open_clips(config)
    autoencoder = load_autoencoder(config.autoencoder)
    assert len(cache) == len(clips) == 4
    assert cache.shard_sizes.tolist() == [2, 2]
    for k in range(4):
        with torch.no_grad():
            made = autoencoder.encode(to_float(clips[k]["frames"])[None])
        item = cache[k]
        torch.testing.assert_close(item["content"], made.content[0], atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(item["motion"], made.motion_latent[0], atol=1e-3, rtol=1e-3)
        assert (item["label"], item["path"]) == (clips[k]["label"], clips[k]["path"])
        assert tuple(item["captions"]) == tuple(clips[k]["captions"])
        assert item["caption"] == clips[k]["captions"][0]
    assert {cache[0, seed]["caption"] for seed in range(20)} == set(clips[0]["captions"])
    assert [len(captions) for captions in cache.captions()] == [2, 2, 2, 2]
    assert cache.weights is None
    with pytest.raises(IndexError):
        cache[4]


def test_batches_gathered_on_a_device_are_those_that_are_read(config: EncodeConfig, tiny_pipeline_dir: Path) -> None:
    features = {"pretrained_model_name_or_path": str(tiny_pipeline_dir), "text_features": "tokens"}
    encode(replace(config, **features))
    cache = LatentCache(config.output_dir)
    cache.use_text_features(load_pipeline(str(tiny_pipeline_dir)).components)
    items = [(3, 7), (0, 8), (2, 9), (2, 10), (2, 11)]
    expected = collate_latents([cache[item] for item in items])
    cache.keep_on(torch.device("cpu"))
    (batch,) = torch.utils.data.DataLoader(cache, batch_sampler=[items], collate_fn=collate_latents)
    assert batch.keys() == expected.keys() and "pooled" in batch
    for name, value in expected.items():
        assert batch[name].equal(value) if isinstance(value, torch.Tensor) else batch[name] == value


def test_motion_statistics_are_those_of_the_files(config: EncodeConfig) -> None:
    weights = Path(config.autoencoder) / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    encode(config)
    cache = LatentCache(config.output_dir)
    motion = torch.stack([cache[k]["motion"] for k in range(4)])
    assert cache.motion_statistics is not None
    mean, std = map(torch.tensor, cache.motion_statistics)
    torch.testing.assert_close(motion.mean((0, 2, 3)), mean, atol=1e-5, rtol=0)
    torch.testing.assert_close(motion.std((0, 2, 3), correction=0), std, atol=1e-5, rtol=0)
    manifest = Path(config.output_dir) / "manifest.json"
    assert json.loads(manifest.read_text())["motion_mean"] == cache.motion_statistics[0]
    # Version 0.1 noted them in the index.
    old = {name: json.loads(manifest.read_text())[name] for name in ("motion_mean", "motion_std")}
    manifest.write_text(json.dumps({k: v for k, v in json.loads(manifest.read_text()).items() if k not in old}))
    index = Path(config.output_dir) / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | old))
    assert LatentCache(config.output_dir).motion_statistics == cache.motion_statistics
    assert weights.read_bytes() == before


def test_index_names_bytes_and_hashes(config: EncodeConfig) -> None:
    encode(config)
    for shard in index_of(config.output_dir)["shards"]:
        path = Path(config.output_dir) / shard["name"]
        assert shard["bytes"] == path.stat().st_size
        assert shard["sha256"] == hash_tensors(load_file(path)) == Shard(path).header["sha256"]


def test_encode_writes_its_own_folder_alone(config: EncodeConfig, tmp_path: Path) -> None:
    """A later cache, say of a test split, changes nothing for models of the first; shipped ones serve too."""
    before = {path: path.read_bytes() for path in Path(config.autoencoder).iterdir()}
    encode(config)
    assert {path: path.read_bytes() for path in Path(config.autoencoder).iterdir()} == before
    encode(replace(config, autoencoder="emoji", vae="emoji", width=32, height=32, output_dir=str(tmp_path / "other")))
    statistics = LatentCache(tmp_path / "other").motion_statistics
    assert statistics is not None and len(statistics[0]) == len(statistics[1]) == 8


def test_a_setting_of_then_is_refused_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "--train_data_dir", "x", "--output_dir", "y", "--measure_motion", "false"]) == 2
    assert "a cache notes the statistics of its own motion latents, so leave it out" in capsys.readouterr().err


def folder_with_bad_files(clip_folder: Path, root: Path, bad: int) -> Path:
    (root / "a").mkdir(parents=True)
    for k in range(4):
        shutil.copy(clip_folder / f"videos/{k}.mp4", root / f"a/{k}.mp4")
    for k in range(bad):
        (root / f"a/1-broken-{k}.mp4").write_text("not a video")
    return root


def test_bad_files_are_left_out_and_named(
    config: EncodeConfig, clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder_with_bad_files(clip_folder, tmp_path / "data", 1)
    config = replace(config, train_data_dir=str(data), split=None, max_bad_fraction=0.3)
    encode(config)
    assert "skipped: " in capsys.readouterr().err
    cache = LatentCache(config.output_dir)
    assert [Path(cache[k]["path"]).name for k in range(len(cache))] == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]
    (line,) = index_of(config.output_dir)["skipped"]
    assert "1-broken-0.mp4" in line
    # Again, with nothing left to do: the same answer.
    before = {path.name: path.read_bytes() for path in Path(config.output_dir).iterdir()}
    encode(config)
    assert f"skipped: {line}" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in Path(config.output_dir).iterdir()} == before


def test_a_file_that_is_mended_comes_into_the_cache(
    config: EncodeConfig, clip_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = folder_with_bad_files(clip_folder, tmp_path / "data", 2)
    config = replace(config, train_data_dir=str(data), split=None, max_bad_fraction=0.4, num_clips_per_video=2)
    encode(config)
    shards = [shard["sha256"] for shard in index_of(config.output_dir)["shards"]]
    capsys.readouterr()
    shutil.copy(clip_folder / "videos/1.mp4", data / "a/1-broken-0.mp4")
    encode(config)
    said = capsys.readouterr().err
    assert said.count("is made again, with files that could not be read before") == 2, "a clip is in two shards"
    assert said.count("skipped: ") == 1 and "1-broken-1.mp4: " in said, "what is still bad is named again"
    after = [shard["sha256"] for shard in index_of(config.output_dir)["shards"]]
    assert [a == b for a, b in zip(shards, after, strict=True)] == [False, True, True, False, True, True]
    whole = replace(config, output_dir=str(tmp_path / "at_once"))
    encode(whole)
    for path in Path(whole.output_dir).glob("*.safetensors"):
        assert path.read_bytes() == (Path(config.output_dir) / path.name).read_bytes()


def test_a_disk_that_stalled_is_asked_again(config: EncodeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def stall(*args: Any, **kwargs: Any) -> None:
        raise SlowVideoError("31 s")

    config = replace(config, max_bad_fraction=0.4)
    make = ClipDataset._make
    monkeypatch.setattr(
        ClipDataset, "_make", lambda own, index, seed: stall() if index == 2 else make(own, index, seed)
    )
    encode(config)
    assert index_of(config.output_dir)["num_clips"] == 3
    monkeypatch.undo()
    encode(config)
    assert index_of(config.output_dir)["num_clips"] == 4 and not index_of(config.output_dir)["skipped"]


def test_too_many_bad_files_stop_the_run(config: EncodeConfig, clip_folder: Path, tmp_path: Path) -> None:
    data = folder_with_bad_files(clip_folder, tmp_path / "data", 4)
    config = replace(config, train_data_dir=str(data), split=None)
    with pytest.raises(ValueError, match=r"bad files among .*max_bad_fraction=0.01"):
        encode(config)
    with pytest.raises(ValueError, match="is not finished"):
        LatentCache(config.output_dir)
    encode(replace(config, max_bad_fraction=0.6))
    assert len(LatentCache(config.output_dir)) == 4


def test_a_shard_without_a_good_clip(config: EncodeConfig, clip_folder: Path, tmp_path: Path) -> None:
    data = folder_with_bad_files(clip_folder, tmp_path / "data", 4)
    encode(replace(config, train_data_dir=str(data), split=None, max_bad_fraction=0.6, clips_per_shard=1))
    assert [shard["clips"] for shard in index_of(config.output_dir)["shards"]] == [1, 0, 0, 0, 0, 1, 1, 1]
    assert len(LatentCache(config.output_dir)) == 4


@pytest.mark.parametrize("change", ["autoencoder", "height", "seed", "data", "vae"])
def test_cache_made_otherwise_is_refused(config: EncodeConfig, tmp_path: Path, tiny_vae: Path, change: str) -> None:
    encode(config)
    if change == "autoencoder":
        other = load_autoencoder(config.autoencoder)
        with torch.no_grad():
            other.motion_head.weight += 1
        other.save_pretrained(tmp_path / "other")
        config = replace(config, autoencoder=str(tmp_path / "other"))
    elif change == "data":
        data = shutil.copytree(config.train_data_dir, tmp_path / "moved")
        encode(replace(config, train_data_dir=str(data)))  # moved: no objection
        text = (data / "metadata.jsonl").read_text()
        (data / "metadata.jsonl").write_text(text.replace("moving square", "triangle"))
        config = replace(config, train_data_dir=str(data))
    else:
        config = replace(
            config, **{"height": {"height": 32}, "seed": {"seed": 1}, "vae": {"vae": str(tiny_vae)}}[change]
        )
    with pytest.raises(ValueError, match=rf"made with other settings \({change}\)"):
        encode(config)


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE that halves the size and keeps three channels, so that the tiny autoencoder takes its latents."""
    from contentmotion.models.patch_vae import PatchVAE

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vae") / "vae"
    PatchVAE(latent_channels=3, block_out_channels=(8, 8), num_layers=1).save_pretrained(folder)
    return folder


def test_training_refuses_a_cache_of_another_autoencoder(config: EncodeConfig, tmp_path: Path) -> None:
    encode(config)
    other = load_autoencoder(config.autoencoder)
    with torch.no_grad():
        other.motion_head.weight += 1
    other.save_pretrained(tmp_path / "other")
    train = TrainMotionConfig(
        **STEPS,
        model=MotionSizes(**NARROW),
        latent_cache=config.output_dir,
        output_dir=str(tmp_path / "m"),
        autoencoder=str(tmp_path / "other"),
    )
    with pytest.raises(ValueError, match="was not made with this autoencoder"):
        train_motion(train)


def test_no_cache(config: EncodeConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no latent cache"):
        LatentCache(tmp_path)
    encode(config)
    (Path(config.output_dir) / "index.json").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        LatentCache(config.output_dir)


def test_lost_shards_are_left_out_up_to_the_limit(config: EncodeConfig) -> None:
    encode(replace(config, clips_per_shard=1))
    root = Path(config.output_dir)
    whole = LatentCache(root)
    (root / "shard-00001.safetensors").unlink()
    data = (root / "shard-00003.safetensors").read_bytes()
    (root / "shard-00003.safetensors").write_bytes(data[:-7])
    with pytest.raises(ValueError, match=r"of 4 cached clips are lost, more than max_bad_fraction=0.01"):
        LatentCache(root)
    cache = LatentCache(root, max_bad_fraction=0.5)
    assert len(cache) == 2
    assert [cache[k]["path"] for k in range(2)] == [whole[k]["path"] for k in (0, 2)]
    assert ["shard-00001" in cache.problems[0], "missing" in cache.problems[0]] == [True, True]
    assert ["shard-00003" in cache.problems[1], f"instead of {len(data)}" in cache.problems[1]] == [True, True]
    # The same command again makes them anew, and the cache is what it was.
    encode(replace(config, clips_per_shard=1))
    assert (root / "shard-00003.safetensors").read_bytes() == data
    assert len(LatentCache(root)) == 4


def test_shards_lost_while_training(config: EncodeConfig) -> None:
    encode(replace(config, clips_per_shard=1))
    root = Path(config.output_dir)
    cache = LatentCache(root, max_bad_fraction=0.3)
    second = cache[1]["path"]
    (root / "shard-00000.safetensors").unlink()
    item = cache[0, 3]
    assert item["path"] == second  # the next good one
    assert len(item["skipped"]) == 1 and "shard-00000" in item["skipped"][0]
    assert collate_latents([item, cache[2]])["skipped"] == item["skipped"]
    (root / "shard-00002.safetensors").write_bytes(b"nonsense")
    cache._open.clear()  # as after many other shards
    with pytest.raises(ValueError, match="2 of 4 cached clips are lost"):
        cache[2]


def test_flipped_bits_are_found_when_a_run_opens_the_cache(
    config: EncodeConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    encode(replace(config, clips_per_shard=1))
    path = Path(config.output_dir) / "shard-00002.safetensors"
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[-200] ^= 4
    path.write_bytes(flipped)
    assert len(LatentCache(config.output_dir)) == 4, "looking at names and sizes alone"
    cache = open_cache(config.output_dir, 0.3)
    assert len(cache) == 3 and "shard-00002.safetensors: damaged: its bytes" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"1 of 4 cached clips are lost.*Run `contentmotion encode` again"):
        open_cache(config.output_dir, 0.1)
    encode(replace(config, clips_per_shard=1))
    assert "is made again" in capsys.readouterr().err
    assert path.read_bytes() == good


def test_a_shard_that_shrinks_under_a_run_is_a_line(config: EncodeConfig) -> None:
    """Mapped into memory, reading it would end the process (SIGBUS)."""
    encode(replace(config, clips_per_shard=1))
    cache = LatentCache(config.output_dir, max_bad_fraction=0.3)
    assert not cache[1]["skipped"]
    path = Path(config.output_dir) / "shard-00001.safetensors"
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)
    item = cache[1]
    assert item["path"] == cache[2]["path"]
    assert "shard-00001.safetensors: damaged: it ends" in item["skipped"][0]


def test_who_made_a_cache_is_what_decides_its_numbers(config: EncodeConfig, tmp_path: Path, tiny_vae: Path) -> None:
    vae = load_vae(str(tiny_vae))
    other = load_vae(str(tiny_vae))
    other.register_to_config(scaling_factor=2 * other.config.scaling_factor)
    assert hash_weights(vae) != hash_weights(other), "the same weights, other latents"
    assert hash_weights(vae, 1) == hash_weights(other, 1), "as version 0.1 took them"
    # Nor is a model another one because of the number format of its file.
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.normal_()
    assert hash_weights(vae) == hash_weights(copy.deepcopy(vae).half())
    assert hash_weights(vae) == hash_weights(copy.deepcopy(vae).half().bfloat16())
    # A cache of version 0.1 keeps its makers, when it is read and when `encode` goes on with it.
    encode(config)
    manifest = Path(config.output_dir) / "manifest.json"
    autoencoder = load_autoencoder(config.autoencoder)
    noted = {k: v for k, v in json.loads(manifest.read_text()).items() if k not in ("hash", "tokenizer")}
    manifest.write_text(json.dumps(noted | {"autoencoder": hash_weights(autoencoder, 1)}))
    LatentCache(config.output_dir).require_made_with(autoencoder=autoencoder)
    (Path(config.output_dir) / "shard-00000.safetensors").unlink()
    encode(config)
    assert json.loads(manifest.read_text())["autoencoder"] == hash_weights(autoencoder, 1)
    assert len(LatentCache(config.output_dir)) == 4


def test_text_features(config: EncodeConfig, tiny_pipeline_dir: Path, tmp_path: Path) -> None:
    features = {"pretrained_model_name_or_path": str(tiny_pipeline_dir), "text_features": "tokens"}
    encode(replace(config, cache_dtype="fp32", **features))
    cache, pipe = LatentCache(config.output_dir), load_pipeline(str(tiny_pipeline_dir))
    for item in (cache[1], cache[3, 1], cache[3, 2], cache[3, 3]):
        with torch.no_grad():
            tokens, pooled = encode_prompts(pipe.tokenizer, pipe.text_encoder, [item["caption"]])
        torch.testing.assert_close(item["tokens"], tokens[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(item["pooled"], pooled[0], atol=1e-5, rtol=1e-4)
    # A denoiser sees the same with them as without, dropped prompts included.
    torch.manual_seed(0)
    transformer = make_motion_dit(text_dim=32)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    parts = {
        "motion_transformer": transformer,
        "motion_scheduler": make_scheduler("linear", "epsilon"),
        "autoencoder": None,
    }
    stage = MotionStage(parts | {"text_encoder": pipe.text_encoder, "tokenizer": pipe.tokenizer})
    batch = collate_latents([cache[k] for k in range(4)])
    plain = {name: value for name, value in batch.items() if name not in ("tokens", "pooled")}
    dropped = torch.tensor([True, False, False, True])
    outputs = [stage(batch["motion"], torch.arange(4), stage.encode(b, dropped)) for b in (batch, plain)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-4)
    calls: list[Any] = []
    pipe.text_encoder.register_forward_hook(lambda *call: calls.append(call))
    again = [stage(batch["motion"], torch.arange(4), stage.encode(b, dropped)) for b in (batch, plain)]
    assert len(calls) == 1, "with features the text encoder is not asked again, not even for the null prompt"
    assert torch.equal(again[0], outputs[0])
    text = {"text_encoder": pipe.text_encoder, "tokenizer": pipe.tokenizer}
    cache.use_text_features(text)
    assert "pooled" in cache[0]
    other = copy.deepcopy(pipe.tokenizer)
    other.add_tokens(["naïvely"])
    with pytest.raises(ValueError, match="not made with this tokenizer"):
        cache.use_text_features(text | {"tokenizer": other})
    with pytest.raises(ValueError, match="not made with this kind of text features"):
        cache.use_text_features(text, "Qwen3")
    with pytest.raises(ValueError, match="not made with this text_encoder_2"):
        cache.use_text_features(text | {"text_encoder_2": pipe.text_encoder})
    cache.use_text_features(None)
    assert "pooled" not in cache[0]
    with torch.no_grad():
        next(pipe.text_encoder.parameters()).add_(1)
    with pytest.raises(ValueError, match="not made with this text_encoder"):
        cache.use_text_features(text)


def test_autoencoder_trains_on_cached_latents_as_on_videos(
    config: EncodeConfig, clip_folder: Path, tiny_vae: Path, tmp_path: Path
) -> None:
    made = replace(config, autoencoder=None, latents_only=True, vae=str(tiny_vae), cache_dtype="fp32")
    encode(made)
    assert index_of(config.output_dir)["num_clips"] == 4
    train = TrainAutoencoderConfig(
        **STEPS, model=AutoencoderSizes(head_dim=8, **NARROW), num_frames=4, height=16, width=16, vae=str(tiny_vae),
        output_dir=str(tmp_path / "from-cache"), latent_cache=config.output_dir,
    )  # fmt: skip
    train_autoencoder(replace(train, validation_steps=2))
    assert (tmp_path / "from-cache/preview-000002.png").exists()
    # The same clips, kept in memory: the same centred ones, drawn in the same order.
    in_memory = {"latent_cache": None, "train_data_dir": str(clip_folder), "cache_latents": True}
    train_autoencoder(replace(train, **in_memory, output_dir=str(tmp_path / "from-videos")))
    files = [
        tmp_path / f"{run}/autoencoder/diffusion_pytorch_model.safetensors" for run in ("from-cache", "from-videos")
    ]
    one, other = map(load_file, files)
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="made with frames, height and width 4x16x16; this run has 4x32x16"):
        train_autoencoder(replace(train, height=32))
    with pytest.raises(ValueError, match="exactly one of the two"):
        train_autoencoder(replace(train, latent_cache=None))
    encode(replace(config, output_dir=str(tmp_path / "pair")))
    with pytest.raises(ValueError, match="latents_only"):
        train_autoencoder(replace(train, vae=None, latent_cache=str(tmp_path / "pair")))


def test_values_beyond_the_number_format_are_refused(config: EncodeConfig) -> None:
    model = load_autoencoder(config.autoencoder)
    with torch.no_grad():
        model.motion_head.bias += 1e6
    model.save_pretrained(config.autoencoder)
    with pytest.raises(ValueError, match=r"motion of a clip among .* is not finite in fp16: --cache_dtype bf16"):
        encode(config)
    encode(replace(config, cache_dtype="bf16"))
    assert LatentCache(config.output_dir)[0]["motion"].abs().max() > 9e5


def test_several_clips_per_video_with_workers(config: EncodeConfig, tmp_path: Path) -> None:
    config = replace(config, num_clips_per_video=3, clips_per_shard=5)
    encode(config)
    cache = LatentCache(config.output_dir)
    assert len(cache) == 12
    items = [cache[k] for k in (0, 4, 8)]
    assert len({item["path"] for item in items}) == 1
    assert not all(torch.equal(items[0]["content"], item["content"]) for item in items[1:])  # other frames
    encode(replace(config, output_dir=str(tmp_path / "workers"), dataloader_num_workers=2))
    for name in ("shard-00000.safetensors", "shard-00002.safetensors", "index.json"):
        assert (tmp_path / "workers" / name).read_bytes() == (Path(config.output_dir) / name).read_bytes(), name
