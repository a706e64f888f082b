"""What other people's files and code rely on: who imports whom, module paths and state-dict keys in checkpoints."""

import ast
import graphlib
import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open

import contentmotion
import mutants
from contentmotion.models.autoencoder import ContentMotionAutoencoder
from contentmotion.models.condition_encoder import ConditionEncoder
from contentmotion.models.motion_dit import MotionDiT
from contentmotion.models.patch_vae import PatchVAE

PACKAGE = Path(contentmotion.__file__).parent
EMOJI = PACKAGE / "assets/emoji"

# Rooms and files at the top, lowest first; a module imports only from its own layer or from lower ones.
LAYERS = (
    ("config", "saving", "tables", "progress", "draws", "diffusion"),
    ("run_dir", "models", "loading", "arguments"),
    ("video",),
    ("data",),
    ("stages",),
    ("pipelines",),
    ("losses",),
    ("cost",),
    ("evaluate",),
    ("train",),
    ("commands",),
    ("demo",),
    ("cli", "__main__", "__init__"),
)


def layer(module: str) -> int:
    """Number of the layer that "data.cache" or "pipeline" belongs to."""
    for name in (module, module.split(".")[0]):
        found = [number for number, names in enumerate(LAYERS) if name in names]
        if found:
            return found[0]
    raise AssertionError(f"{module} is in no layer: add it to LAYERS")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("contentmotion."):
            imported = str(node.module).removeprefix("contentmotion.")
            assert layer(imported) <= layer(module), f"{module} imports {imported}"


def test_no_import_circles() -> None:
    """Of modules, whatever the place of an import in its file: one that waits inside a function is a circle all the
    same."""
    modules = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    imports: dict[str, set[str]] = {}
    for module, path in modules.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("contentmotion."):
                base = str(node.module).removeprefix("contentmotion.")
                names = {f"{base}.{alias.name}" for alias in node.names} & modules.keys()
                found |= names or {base if base in modules else f"{base}.__init__"}
        imports[module] = found
    order = list(graphlib.TopologicalSorter(imports).static_order())  # raises CycleError, which names the modules
    assert set(order) >= modules.keys() and order.index("diffusion") < order.index("train.loop")


def test_functions_are_short() -> None:
    """At most 80 lines, signature and docstring aside."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) and node.body[1:] else node.body
                lines = node.body[-1].end_lineno - body[0].lineno + 1
                assert lines <= 80, f"{path.name}: {node.name} has {lines} lines"


def test_module_paths_are_those_in_checkpoints() -> None:
    """model_index.json names modules: they are part of the file format."""
    index = json.loads((EMOJI / "model_index.json").read_text())
    for name, cls in (("autoencoder", ContentMotionAutoencoder), ("motion_transformer", MotionDiT), ("vae", PatchVAE)):
        assert index[name] == [cls.__module__, cls.__name__]
    # In folders of models with conditions, which no shipped one is.
    where = (ConditionEncoder.__module__, ConditionEncoder.__name__)
    assert where == ("contentmotion.models.condition_encoder", "ConditionEncoder")


@pytest.mark.parametrize(
    ("part", "cls"), [("autoencoder", ContentMotionAutoencoder), ("motion_transformer", MotionDiT), ("vae", PatchVAE)]
)
def test_shipped_weights_have_the_models_keys(part: str, cls: type) -> None:
    config = json.loads((EMOJI / part / "config.json").read_text())
    model = cls.from_config(config)  # type: ignore[attr-defined]
    with safe_open(EMOJI / part / "diffusion_pytorch_model.safetensors", "pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    assert shapes == {key: list(value.shape) for key, value in model.state_dict().items()}


def flows() -> dict[str, list[str]]:
    """The table of docs/architecture.md: a flow and its files in reading order."""
    text = (PACKAGE.parents[1] / "docs/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w -]+) \| ((?:`[\w/]+\.py` ?)+)\|$", text, re.MULTILINE)
    return {name: re.findall(r"`([\w/]+\.py)`", files) for name, files in rows}


MOST_FILES = {
    "generate": 8,
    "train-autoencoder": 8,
    "train a denoiser to its loss": 8,
    "distill": 9,
    "encode": 8,
    "evaluate": 8,
}


def test_every_flow_is_on_the_map() -> None:
    assert {name: len(files) <= MOST_FILES[name] for name, files in flows().items()} == dict.fromkeys(MOST_FILES, True)


@pytest.mark.parametrize("flow", sorted(MOST_FILES))
def test_files_are_in_reading_order(flow: str) -> None:
    """Each file of a flow is imported by one before it (the first, by name in the table of commands)."""
    files = flows()[flow]
    assert files[0] == "cli.py"
    texts = [(PACKAGE / file).read_text(encoding="utf-8") for file in files]
    for k, file in enumerate(files[1:], start=1):
        module = file.removesuffix(".py").replace("/", ".")
        package, _, name = module.rpartition(".")
        forms = [f"contentmotion.{module}", rf"from contentmotion\.{re.escape(package)} import [^\n]*\b{name}\b"]
        if f"{package}.{name} import" in (PACKAGE / package.replace(".", "/") / "__init__.py").read_text():
            forms.append(rf"contentmotion\.{re.escape(package)} import")  # through the table of its package
        assert any(re.search(form, text) for form in forms for text in texts[:k]), file


def test_bugs_to_plant_have_their_places() -> None:
    """The code that mutants.yaml changes is there, once; else nobody would notice that a bug is no longer tried."""
    for mutant in mutants.read_mutants():
        text = (PACKAGE / mutant.file).read_text(encoding="utf-8")
        assert text.count(mutant.old) == 1, mutant
        assert (mutants.TESTS / mutant.test).is_file(), mutant
