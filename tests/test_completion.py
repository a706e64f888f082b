"""The completion script, asked by a real bash."""

import shutil
import subprocess
from pathlib import Path

import pytest

from contentmotion.cli import COMMANDS, main

pytest.importorskip("shtab", reason="needs shtab: pip install contentmotion[completion]")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_settings_and_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--print_completion", "bash"]) == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)

    def complete(*words: str) -> set[str]:
        listed = " ".join(f"'{word}'" for word in words)
        ask = (
            f"source {script}; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; "
            "$(complete -p contentmotion | sed 's/.*-F \\([^ ]*\\).*/\\1/'); printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        done = subprocess.run(["bash", "-c", ask], text=True, capture_output=True, timeout=60)
        return set(done.stdout.split())

    assert set(COMMANDS) <= complete("contentmotion", "")
    assert complete("contentmotion", "gen") == {"generate"}
    assert complete("contentmotion", "generate", "--num_inf") == {"--num_inference_steps"}
    assert complete("contentmotion", "train-motion", "--model.d") == {"--model.depth"}
    assert {"int8", "none"} <= complete("contentmotion", "generate", "--quantization", "")


def test_an_unknown_shell(capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in ((["dos"], "got dos"), ([], "needs a shell")):
        assert main(["--print_completion", *words]) == 2
        assert message in capsys.readouterr().err
