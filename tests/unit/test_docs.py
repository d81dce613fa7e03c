"""The documents name only what exists: linked pages, paths of modules, and the functions in docs/architecture.md."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Entries of the measurements name the paths of their day.
PAGES = [
    page
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("calibration_data/*.md"))
    if not page.name.startswith("20")
]
FOLDERS = "flows|tasks|registry|calibration_data|tests|benchmarks|docs|recipes"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    paths = re.findall(rf"`((?:{FOLDERS})/[\w/.-]+\.(?:py|md|json|yaml))`", text)
    missing = [target for target in links if not (page.parent / target).exists()]
    assert missing + [path for path in paths if not (ROOT / path).exists()] == []


def test_architecture_names_functions_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"((?:`\w+`(?:, | and )?)+) in `([\w/]+\.py)`", page)
    assert named
    missing = [
        f"{file}: {name}"
        for names, file in named
        for name in re.findall(r"\w+", names.replace(" and ", " "))
        if not re.search(rf"^\s*(?:def |class )?{name}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert missing == []
