"""A folder whose files are not what they should be is refused in one line, whichever part it is."""

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet3DConditionModel
from safetensors.torch import load_file, save_file

from contentmotion.loading import load_autoencoder, load_model, load_motion
from contentmotion.pipelines.loading import load_pipeline
from contentmotion.stages.content import load_content

PARTS = ("text_encoder", "unet", "autoencoder", "motion_transformer")


@pytest.fixture
def folder(tiny_pipeline_dir: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_pipeline_dir, tmp_path / "pipeline")


def weights_of(folder: Path, part: str) -> Path:
    [file] = (folder / part).glob("*.safetensors")
    return file


def rewrite(file: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_lacks_a_tensor(folder: Path, part: str) -> None:
    file = weights_of(folder, part)
    tensors = load_file(file)
    name = sorted(tensors)[0]
    rewrite(file, {key: value for key, value in tensors.items() if key != name})
    with pytest.raises(ValueError, match=f"cannot load the {part} from .*: its file lacks .*another architecture"):
        load_pipeline(str(folder))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_with_an_unknown_tensor(folder: Path, part: str) -> None:
    file = weights_of(folder, part)
    rewrite(file, load_file(file) | {"another.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=f"cannot load the {part} from .*: its file has unknown another.weight"):
        load_pipeline(str(folder))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_with_a_nan(folder: Path, part: str) -> None:
    file = weights_of(folder, part)
    tensors = load_file(file)
    name = sorted(tensors)[-1]
    tensors[name].view(-1)[0] = torch.nan
    rewrite(file, tensors)
    with pytest.raises(ValueError, match=f"cannot load the {part} from .*: the weights are not finite in "):
        load_pipeline(str(folder))


def test_fine_tuning_is_as_strict(folder: Path) -> None:
    file = weights_of(folder, "text_encoder")
    tensors = load_file(file)
    rewrite(file, dict(list(tensors.items())[1:]))
    with pytest.raises(ValueError, match="cannot load a text encoder from .*: its file lacks"):
        load_content(str(folder))


@pytest.mark.parametrize("config", ['{"num_train_timesteps": "x"}', '{"beta_schedule": "none"}', "{", None])
def test_a_scheduler_that_is_none(folder: Path, config: str | None) -> None:
    file = folder / "scheduler/scheduler_config.json"
    file.unlink() if config is None else file.write_text(config)
    with pytest.raises(ValueError, match=f"^cannot load a scheduler from {folder}: .+$"):
        load_content(str(folder))


@pytest.mark.parametrize(
    "entry", [{"unet": []}, {"guidance_scale": []}, {"image_pipeline": True}, {"image_pipeline": "pipeline"}]
)
def test_an_index_with_odd_entries(folder: Path, entry: dict) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entry))
    with pytest.raises(ValueError, match=f"^{file} is not a pipeline's index: its {next(iter(entry))} is "):
        load_pipeline(str(folder))


def test_a_tokenizer_without_its_vocabulary(folder: Path) -> None:
    """Every prompt would give the same video."""
    (folder / "tokenizer/tokenizer.json").unlink()
    for load in (load_pipeline, load_content):
        with pytest.raises(ValueError, match="cannot load a tokenizer from .*"):
            load(str(folder))


@pytest.mark.parametrize("damage", ["added_tokens", "vocab"])
def test_a_damaged_tokenizer(folder: Path, damage: str) -> None:
    """The tokenizers library raises what its entries lead to: TypeError, plain Exception."""
    file = folder / "tokenizer/tokenizer.json"
    content = json.loads(file.read_text())
    if damage == "vocab":
        content["model"]["vocab"][next(iter(content["model"]["vocab"]))] = []
    else:
        content["added_tokens"][0]["lstrip"] = None
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="^cannot load a tokenizer from "):
        load_content(str(folder))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["os", "system"], "its unet is a os.system: only diffusers, "),
        (["diffusers", "NoSuchClass"], "its unet is a NoSuchClass, which diffusers does not have"),
    ],
)
def test_an_index_names_no_foreign_code(folder: Path, entry: list[str], message: str) -> None:
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"unet": entry}))
    with pytest.raises(ValueError, match=message):
        load_pipeline(str(folder))


def test_an_index_that_is_none(folder: Path) -> None:
    for text in ("[1]", "{", json.dumps({"unet": 5}), json.dumps({"unet": {"x": 1}})):
        (folder / "model_index.json").write_text(text)
        with pytest.raises(ValueError, match="not a pipeline's index|no autoencoder"):
            load_pipeline(str(folder))


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("name", "value"), [("depth", 10**6), ("num_frames", 10**400), ("hidden_size", [10**9])])
def test_sizes_that_no_network_has(folder: Path, name: str, value: object) -> None:
    file = folder / "autoencoder/config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    with pytest.raises(
        ValueError, match=f"cannot load a ContentMotionAutoencoder from .*: config.json says {name} 10000"
    ):
        load_autoencoder(str(folder))


def test_weights_in_another_file_are_explained(folder: Path, tmp_path: Path) -> None:
    """A pickle's tensors are had by the command that is named; a variant by its other name."""
    whole = folder / "autoencoder/diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    torch.save(tensors, whole.with_suffix(".bin"))
    whole.unlink()
    with pytest.raises(ValueError, match=r"its weights are a pickle \(diffusion_pytorch_model.bin\)") as caught:
        load_autoencoder(str(folder))
    torch.save({name: value + 1 for name, value in tensors.items()}, whole.with_suffix(".non_ema.bin"))
    with pytest.raises(ValueError, match=r"its weights are a pickle \(diffusion_pytorch_model.bin\)") as caught:
        load_autoencoder(str(folder))
    follow(str(caught.value))
    assert all(value.equal(tensors[name]) for name, value in load_autoencoder(str(folder)).state_dict().items())
    for kind in ("fp16", "bf16"):
        shutil.copy(whole, whole.with_suffix(f".{kind}.safetensors"))
    whole.unlink()
    with pytest.raises(ValueError, match="its weights are there as bf16, fp16: say which with --variant"):
        load_autoencoder(str(folder))


def test_a_pickle_in_pieces_is_explained(folder: Path, tmp_path: Path) -> None:
    """The command takes all of them, and a folder's name is no part of a shell's or of Python's text."""
    strange = tmp_path / """a'b"; $(touch canary) c"""
    shutil.copytree(folder / "autoencoder", strange)
    whole = strange / "diffusion_pytorch_model.safetensors"
    tensors = list(load_file(whole).items())
    for number, some in enumerate((tensors[:5], tensors[5:])):
        torch.save(dict(some), strange / f"diffusion_pytorch_model-0000{number + 1}-of-00002.bin")
    whole.unlink()
    with pytest.raises(ValueError, match="its weights are a pickle") as caught:
        load_autoencoder(str(strange))
    follow(str(caught.value))
    assert load_autoencoder(str(strange)).num_parameters() > 0


def follow(message: str) -> None:
    """Runs the Python that an error's last words have a shell run."""
    python, c, code, *arguments = shlex.split(message.partition("as a file that is: ")[2])
    assert (python, c) == ("python", "-c")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["-c", *arguments])
        exec(code)


@pytest.mark.timeout(30)
@pytest.mark.parametrize("part", ["scheduler", "motion_scheduler"])
def test_times_that_no_schedule_has(folder: Path, part: str) -> None:
    file = folder / part / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"num_train_timesteps": 10**10}))
    for load in (load_pipeline, load_motion)[: 1 + (part == "motion_scheduler")]:
        with pytest.raises(ValueError, match="scheduler_config.json says num_train_timesteps 10000000000"):
            load(str(folder))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"_class_name": "FlowMatchHeunDiscreteScheduler", "shift": 3.0}, "FlowMatchEulerDiscreteScheduler"),
        ({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction", "flow_shift": 3.0,
          "use_flow_sigmas": True}, "FlowMatchEulerDiscreteScheduler"),
        ({"_class_name": "PNDMScheduler", "prediction_type": "v_prediction"}, "DDIMScheduler"),
        ({"_class_name": ["evil", "Scheduler"], "prediction_type": "v_prediction"}, "DDIMScheduler"),  # code of its own
    ],
)  # fmt: skip
def test_a_motion_scheduler_that_is_not_known(folder: Path, config: dict[str, Any], expected: str) -> None:
    """Another solver of the same noise schedule stands in for it, not DDIM for a flow."""
    (folder / "motion_scheduler/scheduler_config.json").write_text(json.dumps(config))
    _, scheduler = load_motion(str(folder))
    assert type(scheduler).__name__ == expected
    told = scheduler.config["shift"] if "Flow" in expected else scheduler.config["prediction_type"]
    assert told == (3.0 if "Flow" in expected else "v_prediction")


def test_a_video_unet_that_is_told_the_guidance_is_refused(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"block_out_channels": (32, 32), "layers_per_block": 1, "attention_head_dim": 8}
    down, up = ("CrossAttnDownBlock3D", "DownBlock3D"), ("UpBlock3D", "CrossAttnUpBlock3D")
    unet = UNet3DConditionModel(**sizes, down_block_types=down, up_block_types=up, time_cond_proj_dim=8)
    unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(ValueError, match=r"a video UNet .*it is told the guidance scale \(time_cond_proj_dim\)"):
        load_model(UNet3DConditionModel, str(tmp_path), "unet", "a video UNet")
