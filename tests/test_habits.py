"""What a public host reads: the citation, the workflow, the issue forms, the changelog."""

import re
from datetime import date

import pytest
import yaml
from conftest import ROOT
from documents import commands, read

import filip_jax

SETUP = (ROOT / "setup.cfg").read_text()
PYTHONS = re.findall(r"Python :: (3\.\d+)", SETUP)
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")


def load(path):
    return yaml.load(path.read_text(), yaml.BaseLoader)  # "on" and versions stay texts


def test_the_citation_is_of_this_version_and_of_the_paper():
    citation = load(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys() and citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software" and citation["version"] == filip_jax.__version__
    assert f"\nlicense = {citation['license']}\n" in SETUP and all(author["name"] for author in citation["authors"])
    [paper] = citation["references"]
    assert "2111.07783" in paper["url"] and paper["url"] in read("README.md")
    assert len(paper["authors"]) == 10 and all(
        author.keys() == {"family-names", "given-names"} for author in paper["authors"]
    )


def test_the_changelog_begins_with_what_is_to_come():
    versions = re.findall(r"^## \[(.*?)\](?: - (.*))?$", read("CHANGELOG.md"), re.MULTILINE)
    assert versions[0] == ("Unreleased", "") and all(date.fromisoformat(day) for _, day in versions[1:])
    kinds = re.findall(r"^### (.*)$", read("CHANGELOG.md"), re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_the_documented_commands_and_may_only_read(path):
    workflow, text = load(path), path.read_text()
    assert workflow["permissions"] == {"contents": "read"}
    documented = set(re.findall(r"`(bash launch/test\.sh[^`]*)`", read("CONTRIBUTING.md")))
    for name, job in workflow["jobs"].items():
        assert "permissions" not in job and int(job["timeout-minutes"]) <= 90, name
        runs = [command for step in job["steps"] for command in commands(step.get("run", ""))]
        assert runs and set(runs) <= documented, name
        for step in job["steps"]:
            if "uses" in step:  # a tag can be moved, a commit cannot; the comment says which version it is
                assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"]), name
                assert re.search(rf"{step['uses']}  # v\d+\.\d+\.\d+$", text, re.MULTILINE), name
        versions = [step["with"]["python-version"] for step in job["steps"] if "python-version" in step.get("with", {})]
        matrix = job.get("strategy", {}).get("matrix", {}).get("python", [])
        for version in matrix or versions:
            assert version in PYTHONS, name
        assert job["env"]["PYTHON"].removeprefix("python") == versions[0], name


def test_the_workflow_runs_both_tiers():
    jobs = load(ROOT / ".github/workflows/tests.yml")["jobs"]
    found = {job["steps"][-1]["run"]: job for job in jobs.values()}
    assert found.keys() == {
        "bash launch/test.sh",
        "bash launch/test.sh --all",
        "bash launch/test.sh tests/test_lint.py",
    }
    matrix = found["bash launch/test.sh"]["strategy"]["matrix"]["python"]
    assert {PYTHONS[0], PYTHONS[-1]} <= set(matrix) and "schedule" in found["bash launch/test.sh --all"]["if"]


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_issue_forms_have_the_hosts_form(path):
    form, ids = load(path), set()
    assert form.keys() <= {"name", "description", "title", "labels", "body"} and form["name"] and form["description"]
    for item in form["body"]:
        assert item["type"] in ("markdown", "textarea", "input", "dropdown")
        assert item.keys() <= {"type", "id", "attributes", "validations"}
        if item["type"] == "markdown":
            assert item["attributes"].keys() == {"value"}
            continue
        assert re.fullmatch(r"[a-z_-]+", item["id"]) and item["id"] not in ids and item["attributes"]["label"]
        ids.add(item["id"])
        assert ("options" in item["attributes"]) == (item["type"] == "dropdown")
    assert any(item.get("validations") == {"required": "true"} for item in form["body"])
