"""The notebooks of examples/ run from top to bottom on a CPU, and are kept without their outputs."""

import json
from pathlib import Path

import pytest

import warm

SAYS = {
    "content-and-motion.ipynb": ("(1, 16, 64, 64, 3) (1, 64, 64, 3)", "PSNR ", "student"),
    "from-a-picture-from-a-video.ipynb": ("content frame: ", "(40, 64, 64, 3)", "reconstruction: 0."),
}
FILES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_outputs_are_stripped(file: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat: pip install contentmotion[dev]")
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)


def run_cells(cells: list[str]) -> None:
    """What Jupyter does with the code of a notebook: prints how many pictures it showed, and its text, as JSON."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell, pictures, text = InteractiveShell.instance(), 0, ""
    for cell in cells:
        with capture_output() as shown:
            result = shell.run_cell(cell)
        result.raise_error()
        pictures += sum("image/png" in output.data for output in shown.outputs)
        text += shown.stdout
    print(json.dumps([pictures, text]))


@pytest.mark.timeout(600)
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_notebook_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("IPython", reason="needs ipykernel: pip install contentmotion[dev]")
    cells = [cell for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    for k, cell in enumerate(cells):
        if "parameters" in cell["metadata"].get("tags", []):
            assert "STEPS = 50" in sources[k]
            sources[k] = sources[k].replace("STEPS = 50", "STEPS = 4")
    monkeypatch.chdir(tmp_path)
    process = warm.Process(run_cells, sources, env={"HF_HUB_OFFLINE": "1", "IPYTHONDIR": str(tmp_path / "ipython")})
    output, errors = process.communicate(500)
    assert process.returncode == 0, errors
    pictures, text = json.loads(output.splitlines()[-1])
    assert pictures >= 10
    assert all(words in text for words in SAYS[file.name])
