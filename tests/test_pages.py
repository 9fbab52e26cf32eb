"""The pages beside README: what they name and link to is there."""

import json
import re

import pytest
from conftest import ROOT
from documents import PAGES, anchors, links, read, target

from filip_jax.config import load_config
from filip_jax.epochs import KEY as KEY_OF_EPOCHS
from filip_jax.sections import keys_of
from filip_jax.train.optimizer import make_optimizer

COMING, PROFILES = map(read, ("docs/coming_from.md", "launch/profiles.md"))
RESULTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "benchmarks/results").glob("*.md"))
# What a config's sections may be called: words in backticks, dotted or not, that are keys and no metric, flag or file.
KEY = r"`([a-z_]+(?:\.[a-z_0-9]+)*)(?:=[^`]*)?`"


def keys_in(config, prefix=""):
    for name, value in config.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from keys_in(value, f"{prefix}{name}.")


def ours(heading):
    """Return the last cells of the table below a heading of docs/coming_from.md, its head left out."""
    section = COMING.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return [line.split("|")[-2] for line in section.splitlines() if line.startswith("| ")][2:]


@pytest.fixture(scope="module")
def keys():
    options = {f"optimizer.{name}" for name in keys_of(make_optimizer)}
    return {*keys_in(load_config(str(ROOT / "configs/filip.py"))), KEY_OF_EPOCHS, *options}


def test_the_keys_that_others_flags_become_are_keys(keys):
    named = [key for cell in ours("Flags") for key in re.findall(KEY, cell) if key not in ("mixture", "weight")]
    assert len(named) > 40 and not set(named) - keys


def test_the_metrics_that_others_become_are_written(finished):
    lines = map(json.loads, (finished[0] / "metrics.jsonl").read_text().splitlines())
    written = {name for line in lines for name in line}
    named = [metric for cell in ours("Metrics") for metric in re.findall(r"`((?:train|time|val|NAME)/[^`]+)`", cell)]
    assert len(named) > 9 and {metric.replace("NAME", "seen_cells") for metric in named} <= written


def test_the_keys_that_profiles_name_are_keys(keys):
    table = PROFILES.split("| seen ")[1]
    named = [key for line in table.splitlines() for key in re.findall(KEY, line)]
    assert len(named) > 6 and not set(named) - keys - {"rematted_computation"}
    assert "model.remat" in keys and "profile.first_step" in keys


@pytest.mark.parametrize("page", PAGES + RESULTS)
def test_links_lead_to_files_and_headings(page):
    for link in links(page):
        if link.startswith("https://"):
            continue
        place, anchor = target(page, link)
        assert place.resolve().is_relative_to(ROOT) and place.exists(), f"{page}: no {link}"
        assert not anchor or anchor in anchors(str(place.resolve().relative_to(ROOT))), f"{page}: no heading {link}"


@pytest.mark.parametrize("folder", ["configs", "filip_jax", "launch", "benchmarks"])
def test_messages_name_pages_that_exist(folder):
    """A page that a message, a docstring or a script names exists."""
    for file in (path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".sh", ".yaml", ".sbatch", "")):
        if file.is_file():
            for page in re.findall(r"\b(?:docs|launch|configs)/\w+\.md", file.read_text()):
                assert (ROOT / page).exists(), f"{file}: {page}"


def test_readme_is_one_page_that_links_to_all_others():
    assert read("README.md").count("\n") <= 200
    linked = {str(target("README.md", link)[0].relative_to(ROOT)) for link in links("README.md") if ":" not in link}
    assert {page for page in PAGES if page != "README.md" and not page.startswith((".github", "tests"))} <= linked


def test_anchors_are_those_of_the_host(monkeypatch):
    """The forms that headings have: code, punctuation, links, the same heading twice."""
    page = "# `filip data`: a, b\n## A (b)\n## A (b)\n```bash\n# no heading\n```\n## See [this](that.md)\n## x_y – z\n"
    monkeypatch.setattr("documents.read", lambda _: page)
    assert anchors("page") == {"filip-data-a-b", "a-b", "a-b-1", "see-this", "x_y--z"}
