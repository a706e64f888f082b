"""The fuzzer: that it finds what is wrong, and that nothing is wrong in a few cases of the cheap kinds."""

import faulthandler
import importlib.util
import os
import random
import signal
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[1] / "benchmarks/fuzz.py"


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", FILE)
    assert spec is not None and spec.loader is not None
    module = sys.modules["fuzz"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_few_cases(fuzz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("jsonl", "yaml"):
        only = {"inspect": fuzz.KINDS[kind].commands["inspect"]}
        monkeypatch.setitem(fuzz.KINDS, kind, fuzz.Kind(fuzz.KINDS[kind].file, only, text=True))
    tallies = fuzz.fuzz(tmp_path, kinds=["jsonl", "yaml"], seed=1, first=0, going_on=lambda done: done < 4)
    assert fuzz.report(tallies) == 0, tallies
    assert "4 cases, 0 failures" in capsys.readouterr().out


def test_what_is_wrong_is_found(fuzz, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(words: list[str]) -> int:
        if words[0] == "crash":
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGSEGV)
        if words[0] == "hang":
            signal.pause()
        if words[0] == "memory":
            return len(bytearray(b"1") * (1 << 29)) * 0
        raise KeyError(words[0])

    monkeypatch.setattr(fuzz, "command_line", broken)
    monkeypatch.setattr(fuzz, "MAX_MEMORY", 1 << 27)
    found = {word: fuzz.run_case([word], tmp_path / "log")[0] for word in ("crash", "trace", "memory")}
    monkeypatch.setattr(fuzz, "MAX_SECONDS", 0.2)
    assert found["crash"] == "crashes (signal 11)" and found["trace"] == "traceback: KeyError: 'trace'"
    assert found["memory"].startswith("takes 0.")
    assert fuzz.run_case(["hang"], tmp_path / "log")[0].startswith("hangs")


def test_damage_is_a_function_of_the_case(fuzz) -> None:
    good = b'{"file_name": "a.mp4", "text": "a"}' * 9
    bad = [fuzz.damage(good, random.Random(f"0 {k}"), text=True) for k in range(20)]
    assert bad == [fuzz.damage(good, random.Random(f"0 {k}"), text=True) for k in range(20)]
    assert len(set(bad)) > 15
