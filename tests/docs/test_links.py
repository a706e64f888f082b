"""Links of the README, the docs and the model cards lead somewhere; every page is in the navigation."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CARDS = sorted((ROOT / "src/contentmotion/assets").glob("*/README.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *CARDS]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
FENCED = re.compile(r"^( *)```.*?^\1```", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The names of a page's headings, as GitHub and mkdocs both make them of plain headings."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title.lower()).strip()) for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for link in LINK.findall(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target), link


def test_every_page_is_in_the_navigation() -> None:
    def files(entries: list) -> list[str]:
        values = [value for entry in entries for value in entry.values()]
        return [name for value in values for name in (files(value) if isinstance(value, list) else [value])]

    nav = files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(nav) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))
    assert nav[0] == "index.md"


def test_first_page_has_the_readmes_two_commands() -> None:
    commands = [
        re.search(r"```sh\n(make demo.*?\nmake test.*?)\n```", path.read_text(encoding="utf-8"), re.DOTALL)
        for path in (ROOT / "README.md", ROOT / "docs/index.md")
    ]
    assert all(commands)
    assert all(len(found[1].splitlines()) == 2 for found in commands if found)


def test_every_command_and_public_setting_is_in_the_reference() -> None:
    from contentmotion.cli import COMMANDS

    text = (ROOT / "docs/commands.md").read_text()
    for name, command in COMMANDS.items():
        assert f"\n## {name}\n\n::: {command.config_class.__module__}.{command.config_class.__name__}\n" in text
