"""A run's page: one file with curves, pictures, settings and alarms."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from contentmotion.cli import main
from contentmotion.commands.report import GROUPS, find_alarms, read_metrics


class Page(HTMLParser):
    """Counts tags and collects text and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that was killed at step 30 of 100, with what trouble leaves behind."""
    run = tmp_path / "a run <1>"
    run.mkdir()
    lines = [{"step": k, "loss": 1 / k, "grad_norm": 1.0, "data_wait": 0.5, "lr": 1e-4} for k in range(1, 31)]
    lines.insert(10, {"step": 10, "eval/fvd": 900.0})
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 31, "lo'
    (run / "metrics.jsonl").write_text(text)
    (run / "config.yaml").write_text("# repeat\nmax_train_steps: 100\noutput_dir: a&b\n")
    (run / "environment.json").write_text(json.dumps({"hardware": "an abacus"}))
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(run / "preview-000010.png")
    return run


def test_page_holds_everything(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = Page((run / "report.html").read_text())
    assert page.tags.count("svg") == 1 and page.tags.count("img") == 1
    titles = [name for name, _ in GROUPS if name in page.texts]
    assert titles == ["loss", "scores", "gradient norm", "learning rate", "share of the time spent waiting for data"]
    outside = [address for address in page.addresses if not address.startswith(("#", "data:image/png;base64,"))]
    assert not outside, "the page needs no other file"
    text = " ".join(page.texts)
    for expected in ("a run <1>", "30 of 100", "a&b", "an abacus", "preview-000010", "step 30 of 100: the command",
                     "50% of the time was spent waiting for data"):  # fmt: skip
        assert expected in text, expected
    assert not re.search("Nothing looks wrong|gradient's norm jumped|loss ends above", text)


def test_output_elsewhere(run: Path, tmp_path: Path) -> None:
    assert main(["report", str(run), "--output", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").exists() and not (run / "report.html").exists()


def test_alarms() -> None:
    good = [{"step": k, "loss": 1 / k, "grad_norm": 1.0, "data_wait": 0.01} for k in range(1, 41)]
    assert find_alarms(good, {"max_train_steps": 40}) == []
    rising = [line | {"loss": line["step"], "x0_std_ratio": 0.3} for line in good]
    rising[-1]["grad_norm"] = 50.0
    told = find_alarms(rising, {})
    for words in ("loss ends above", "norm jumped", "x0_std_ratio ends at 0.30"):
        assert any(words in line for line in told), words
    assert len(told) == 3
    assert find_alarms([{"step": 1, "loss": float("nan")}], {}) == ["loss was not finite."]


def test_what_is_no_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no metrics.jsonl" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nbroken\n{"step": 2}\n')
    assert main(["report", str(tmp_path)]) == 1
    assert "metrics.jsonl, line 2: damaged" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="is empty"):
        read_metrics(tmp_path)
