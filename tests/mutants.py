"""Plants the bugs of mutants.yaml one by one in a copy of the source, and says which test notices each.

`python tests/mutants.py`, or with words of the names of some; needs a system that can fork.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

TESTS = Path(__file__).resolve().parent
SOURCE = TESTS.parent / "src"


@dataclass(frozen=True)
class Mutant:
    """A bug.

    Attributes:
        name: What it does.
        file: Under src/contentmotion.
        old: What is there, once.
        new: What is put there.
        test: The file that notices, under tests/.
    """

    name: str
    file: str
    old: str
    new: str
    test: str


def read_mutants() -> list[Mutant]:
    """The bugs of mutants.yaml."""
    found = yaml.safe_load((TESTS / "mutants.yaml").read_text(encoding="utf-8"))
    return [Mutant(**fields, test=test) for test, bugs in found.items() for fields in bugs]


def plant(mutant: Mutant, folder: Path) -> None:
    """Copies the source into the folder, with the bug in it."""
    shutil.copytree(SOURCE, folder, ignore=shutil.ignore_patterns("__pycache__", "assets"))
    (folder / "contentmotion/assets").symlink_to(SOURCE / "contentmotion/assets")
    file = folder / "contentmotion" / mutant.file
    text = file.read_text(encoding="utf-8")
    assert text.count(mutant.old) == 1, (
        f"{mutant.name}: {mutant.file} has {mutant.old!r} {text.count(mutant.old)} times"
    )
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def run_tests(source: Path, test: str, log: Path) -> int:
    """Runs a test file against a source tree, in a process that shares the imports of this one; pytest's status."""
    log.touch()
    child = os.fork()
    if not child:
        status = 99
        try:
            out = os.open(log, os.O_WRONLY)
            os.dup2(out, 1)
            os.dup2(out, 2)
            sys.path.insert(0, str(source))
            sys.dont_write_bytecode = True
            quiet = ["-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
            status = int(pytest.main(["-q", "-x", "-n0", *quiet, str(TESTS / test)]))
        finally:
            sys.stdout.flush()
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def import_others() -> None:
    """Imports what our modules import, which takes longest, and forgets our modules again."""
    for file in sorted({mutant.file for mutant in read_mutants()}):
        importlib.import_module("contentmotion." + file.removesuffix(".py").replace("/", "."))
    for name in [name for name in sys.modules if name.split(".")[0] == "contentmotion"]:
        del sys.modules[name]


def main(names: list[str]) -> int:
    """Plants the bugs with one of the words in their names, or all; returns how many live."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import_others()
    alive = 0
    for mutant in read_mutants():
        if names and not any(name in mutant.name for name in names):
            continue
        with tempfile.TemporaryDirectory() as folder:
            log, source = Path(folder) / "log", Path(folder) / "src"
            try:
                plant(mutant, source)
            except AssertionError as error:
                print(f"gone   {error}")
                alive += 1
                continue
            killed = run_tests(source, mutant.test, log) == 1
            failed = [line.split()[1] for line in log.read_text().splitlines() if line.startswith("FAILED")]
            alive += not killed
            print(f"{'killed' if killed else 'LIVES '} {mutant.name}: {' '.join(failed)}", flush=True)
    return alive


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
