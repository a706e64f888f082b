"""The notebooks of examples/ run from top to bottom on a CPU, and are kept without their outputs."""

from pathlib import Path

import pytest

SAYS = {
    "content-and-motion.ipynb": ("(1, 16, 64, 64, 3) (1, 64, 64, 3)", "PSNR ", "student"),
    "from-a-picture-from-a-video.ipynb": ("content frame: ", "(40, 64, 64, 3)", "reconstruction: 0."),
}
FILES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.ipynb"))


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_outputs_are_stripped(file: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient: pip install contentmotion[dev]")
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # of Jupyter's own
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_notebook_runs(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs nbclient: pip install contentmotion[dev]")
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install contentmotion[dev]")
    pytest.importorskip("ipykernel", reason="needs ipykernel: pip install contentmotion[dev]")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(file, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            assert "STEPS = 50" in cell.source
            cell.source = cell.source.replace("STEPS = 50", "STEPS = 4")
    nbclient.NotebookClient(notebook, timeout=500, kernel_name="python3").execute(cwd=str(tmp_path))
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    shown = [output for cell in code for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) >= 10
    text = "".join(output.get("text", "") for output in shown)
    assert all(words in text for words in SAYS[file.name])
