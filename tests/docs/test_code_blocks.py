"""Every code block of the README and of docs/ is run here, with small settings, or says why not.

A block of shell or Python is run unless ``<!-- not run: REASON -->`` stands above it; what is not run is still read by
the real parser. Indented commands count as shell. The blocks of a page run in order, in one folder that has what they
name (see conftest.py); the README's come first, for the other pages use what it trains.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest

from contentmotion.arguments import parse_config
from contentmotion.cli import COMMANDS, main
from contentmotion.pipelines import sampling

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
}
# Diaries: their commands are records of what was run, with date and hardware; repeating them takes hours.
RECORDS = ("docs/log.md", "docs/miniature.md", "docs/cost.md")
# Marks of pages that are kept without comments: page, words that the block begins with, reason.
MARKS = (
    ("README.md", "make demo", "sets up an environment of its own and runs the tests; CI does both"),
    (
        "docs/distillation.md",
        "from diffusers import LCMScheduler",
        "the teacher's name is the reader's; tests/train/test_lora.py",
    ),
    (
        "docs/distillation.md",
        "contentmotion encode --train_data_dir my_videos --vae $SD --latents_only",
        "needs a depth model",
    ),
)
PROGRAMS = ("contentmotion", "python", "pip", "torchrun", "export", "accelerate", "pytest", "make")
NO_CODE = ("", "text", "yaml", "json", "csv")
BLOCK = re.compile(
    r"(?:^[ ]*<!-- not run: (?P<reason>[^>]+?) -->[ ]*\n)?"
    r"(?:^(?P<pad>[ ]*)```(?P<kind>\w*)[ ]*\n(?P<fenced>.*?)^(?P=pad)```[ ]*$"
    rf"|(?<=\n\n)(?P<indented>[ ]{{4,}}(?:{'|'.join(PROGRAMS)}) [^\n]*\n(?:[ ]{{4,}}[^\n]*\n)*))",
    re.MULTILINE | re.DOTALL,
)
STEPS = ["--max_train_steps", "2", "--train_batch_size", "2", "--validation_steps", "0"]
STEPS += ["--report_to", "none", "--mixed_precision", "no"]
SIZES = ["--model.hidden_size", "16", "--model.depth", "1", "--model.num_heads", "2"]
CLIP = ["--num_frames", "4", "--height", "32", "--width", "32"]
FEW = ["--num_inference_steps", "2", "--device", "cpu", "--mixed_precision", "no"]
# What makes a command small; a flag given twice counts the second time.
SMALL = {
    "train": ["--preset", str(ROOT / "tests/data_files/tiny_preset.yaml")],
    "generate": FEW,
    "inspect": [*CLIP, "--num_workers", "1"],
    "train-autoencoder": [*STEPS, *CLIP, *SIZES, "--model.head_dim", "8"],
    "encode": [*CLIP, "--mixed_precision", "no"],
    "train-content": [
        *STEPS,
        "--model.block_out_channels",
        "32",
        "32",
        "--model.text_num_layers",
        "1",
        "--model.vocab_size",
        "600",
    ],
    "train-motion": [*STEPS, *SIZES, "--model.content_patch_size", "2"],
    "distill": STEPS,
    "evaluate": [*FEW, "--components", "reconstruction", "--num_videos", "4", "--num_frames", "10"],
}
SHAPES = ("runs/prepare_shapes.py", "--num_train", "4", "--num_test", "2")


@dataclass(frozen=True)
class Block:
    """A code block: its language, its text, its line in the page, and why it is not run, if it is not."""

    kind: str
    text: str
    line: int
    reason: str | None

    @property
    def commands(self) -> list[list[str]]:
        """Its shell commands as words, variables put in, comments gone."""
        variables: dict[str, str] = {}
        found = []
        for line in re.sub(r"\\\n\s*", " ", self.text).splitlines():
            assigned = re.fullmatch(r"\s*(\w+)=(\S+)", line)
            if assigned:
                variables[assigned[1]] = assigned[2]
                continue
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            words = shlex.split(line, comments=True)
            found += [words] if words else []
        return found


def read_blocks(page: str) -> list[Block]:
    text = PAGES[page].read_text(encoding="utf-8")
    blocks = []
    for match in BLOCK.finditer(text):
        code = textwrap.dedent(match["fenced"] if match["indented"] is None else match["indented"])
        marked = [reason for where, start, reason in MARKS if where == page and code.startswith(start)]
        reason = match["reason"] or (marked[0] if marked else None)
        kind = "sh" if match["indented"] is not None else match["kind"]
        if kind not in NO_CODE:
            blocks.append(Block(kind, code, text[: match.start()].count("\n") + 1, reason))
    return blocks


BLOCKS = {page: read_blocks(page) for page in PAGES}
COMMAND_LINES = [
    pytest.param(words[1:], id=f"{page}:{block.line} {' '.join(words[1:3])}"[:70])
    for page, blocks in BLOCKS.items()
    if page not in RECORDS
    for block in blocks
    if block.kind == "sh"
    for words in block.commands
    if words[0] == "contentmotion" and words[1:] and not words[1].startswith("-")
]


def test_blocks_are_found() -> None:
    """The expression above sees what is there: as many blocks as there are fences, and the indented ones."""
    for page, path in PAGES.items():
        text = path.read_text(encoding="utf-8")
        opened = re.findall(r"^ *```(\w*)", text, re.MULTILINE)
        assert len(opened) % 2 == 0, page
        code = [kind for kind in opened[::2] if kind not in NO_CODE]
        assert len([block for block in BLOCKS[page] if block.text]) >= len(code), page
    assert {block.kind for blocks in BLOCKS.values() for block in blocks} <= {"sh", "python"}
    assert len(BLOCKS["README.md"]) >= 6 and len(BLOCKS["docs/distillation.md"]) >= 5
    reasons = [block.reason for blocks in BLOCKS.values() for block in blocks if block.reason]
    assert all(len(reason) > 10 for reason in reasons)


@pytest.mark.parametrize("words", COMMAND_LINES)
def test_command_is_understood(words: list[str]) -> None:
    if "--config" in words and "outputs/" in words[words.index("--config") + 1]:  # what an earlier command writes
        del words[words.index("--config") : words.index("--config") + 2]
        words.insert(1, "prompt")
    command = COMMANDS[words[0]]
    assert isinstance(parse_config(words[0], command.config_class, command.positional, words[1:]), command.config_class)


@pytest.fixture(scope="module")
def few_steps() -> None:
    """Pipelines of the Python blocks take two steps where they are not told how many."""
    patch = pytest.MonkeyPatch()
    patch.setattr(sampling, "DEFAULT_STEPS", 2)
    yield
    patch.undo()


def run_page(page: str) -> None:
    """Runs the blocks of a page that are not marked; the Python blocks share their names."""
    names: dict[str, object] = {}
    for block in BLOCKS[page]:
        if block.reason:
            continue
        where = f"{page}, line {block.line}"
        if block.kind == "python":
            exec(compile(block.text, where, "exec"), names)
            continue
        for words in block.commands:
            run_command(words, where, PAGES[page].read_text(encoding="utf-8"))


def run_command(words: list[str], where: str, text: str) -> None:
    if words == ["source", ".venv/bin/activate"]:
        return
    if words[:2] == ["python", SHAPES[0]]:
        done = subprocess.run([sys.executable, *words[1:], *SHAPES[1:]], capture_output=True, text=True)
        assert done.returncode == 0, f"{where}: {done.stderr}"
        return
    if words[1:2] in (["export"], ["distill"]):  # they go on with, or refuse, what an earlier page made
        shutil.rmtree(words[words.index("--output_dir") + 1], ignore_errors=True)
    assert words[0] == "contentmotion", f"{where}: no test can run {' '.join(words)!r}: mark the block"
    if "--eval_latent_cache" in words:
        words = [*words, "--heldout_steps", "2", "--heldout_items", "1"]
    is_read = "--output_dir" in words and f"{words[words.index('--output_dir') + 1]}/000" in text  # by another block
    if words[1] == "generate" and "--output_dir" in words and "--formats" not in words and not is_read:
        words = [*words, "--formats", "mp4"]
    assert main([*words[1:], *SMALL.get(words[1], [])]) == 0, f"{where}: {' '.join(words)}"


@pytest.fixture(scope="session")
def after_readme(workshop: Path) -> Path:
    """The workshop once the README's commands were given in it."""
    before = Path.cwd()
    os.chdir(workshop)
    patch = pytest.MonkeyPatch()
    patch.setattr(sampling, "DEFAULT_STEPS", 2)
    try:
        run_page("README.md")
    finally:
        patch.undo()
        os.chdir(before)
    return workshop


@pytest.mark.timeout(600)
def test_readme(after_readme: Path) -> None:
    assert (after_readme / "heart.gif").is_file() and (after_readme / "outputs/sheet.png").is_file()
    assert (after_readme / "outputs/mine/few-step/model_index.json").is_file()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md" and page not in RECORDS])
def test_page(page: str, after_readme: Path, few_steps: None, monkeypatch: pytest.MonkeyPatch, i3d_file: Path) -> None:
    monkeypatch.chdir(after_readme)
    monkeypatch.setenv("CONTENTMOTION_I3D", str(i3d_file))
    run_page(page)
