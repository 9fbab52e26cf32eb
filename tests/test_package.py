"""The package beside its code: shipped configs by name, extras, versions, what an import loads, what is declared."""

import ast
import configparser
import importlib.metadata
import re
import shlex
import subprocess
import sys

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_structure import FILES, imports

import filip_jax
from filip_jax import extras
from filip_jax.cli import main
from filip_jax.config import load_config
from filip_jax.errors import UserError
from filip_jax.shipped import shipped_configs, shipped_scripts

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")
EXTRAS = {name: lines.strip().split("\n") for name, lines in SETUP["options.extras_require"].items()}


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name, file",
    [
        ("demo", "demo.py"),
        ("demo:quick", "demo.py:quick"),
        ("filip:base", "filip.py:base"),
        ("filip.py:large", "filip.py:large"),
        ("clip:base", "clip.py:base"),
        ("configs/finetune.py:coco", "finetune.py:coco"),
        ("eval/retrieval", "eval/retrieval.py"),
        ("eval/linear_probe:cifar10", "eval/linear_probe.py:cifar10"),
        ("configs/eval/tfds:pets", "eval/tfds.py:pets"),
    ],
)
def test_a_shipped_config_is_found_by_its_name(elsewhere, name, file):
    assert load_config(name) == load_config(str(ROOT / "configs" / file))


@pytest.mark.parametrize("name", ["demo", "demo:quick", "demo.py:quick", "eval/retrieval", "configs/filip.py:base"])
def test_a_file_of_the_current_folder_comes_first(elsewhere, name):
    file = elsewhere / f"{name.partition(':')[0].removesuffix('.py')}.py"
    file.with_suffix("").mkdir(parents=True)  # a folder of this name is no file
    file.write_text(
        "from ml_collections import ConfigDict\nVARIANTS = ('quick', 'base')\n"
        "def get_config(variant='none'):\n  return ConfigDict(dict(variant=variant))\n"
    )
    assert load_config(name) == {"variant": name.partition(":")[2] or "none"}


@pytest.mark.parametrize("name", ["demo", "demo:quick", "eval/retrieval"])
def test_a_file_that_is_no_config_does_not_run_for_a_shipped_one(elsewhere, name):
    file = elsewhere / f"{name.partition(':')[0]}.py"
    file.parent.mkdir(exist_ok=True)
    file.write_text("raise SystemExit('it ran')\n")
    with pytest.warns(UserWarning, match="is no config, it does not mention get_config"):
        assert load_config(name) == load_config(f"configs/{name}")


def test_a_file_that_is_named_as_a_file_is_not_replaced_by_a_shipped_config(elsewhere):
    (elsewhere / "demo.py").write_text("")
    for name in ("demo.py", "./demo.py:quick"):
        with pytest.raises(UserError, match="the file has no function get_config"):
            load_config(name)


@pytest.mark.parametrize("name", ["demos", "demo.txt", "nowhere.py", "retrieval", "../configs/demo", "./demos"])
def test_a_config_that_is_not_there_is_told_with_those_that_are(elsewhere, name):
    (elsewhere / "demo.txt").write_text("")
    with pytest.raises(UserError, match="no such Python file; the configs that filip_jax ships are clip, demo, filip"):
        load_config(name)


@pytest.mark.parametrize("name", ["", ":quick"])
def test_an_empty_name_of_a_config_is_answered_with_how_to_name_one(elsewhere, capsys, name):
    for words in (["train"], ["train", "--config.seed=3"], ["eval"], ["data", "inspect"]):
        assert main([*words, f"--config={name}", *(["--workdir=x"] if words[0] != "data" else [])]) == 2
        message = f"--config={name} names no config: write FILE.py[:variant] or NAME[:variant]; the configs that filip"
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["./demo", "./configs/demo.py:quick", "./eval/tfds:pets"])
def test_a_path_is_no_name_of_a_shipped_config_but_its_error_names_it(elsewhere, name):
    """./ says that a file of the current folder is meant."""
    message = f"--config={name}: no such Python file; without ./ it is the one that filip_jax ships"
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(name)
    assert load_config(name.removeprefix("./"))


def test_the_shipped_files_are_those_of_the_repository():
    """In a clone by links, in a source distribution as copies."""
    assert {f"{name}.py": file.read_bytes() for name, file in shipped_configs().items()} == {
        str(file.relative_to(ROOT / "configs")): file.read_bytes() for file in (ROOT / "configs").rglob("*.py")
    }
    for file, summary in shipped_scripts().items():
        assert file.read_bytes() == (ROOT / "launch" / file.name).read_bytes() and summary


def test_configs_are_listed_with_their_variants(capsys):
    assert main(["configs"]) == 0
    configs, scripts = capsys.readouterr().out.split("\n\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in configs.splitlines()[2:]]
    assert [row[0] for row in rows] == list(shipped_configs()) and all(row[1] for row in rows)
    for name, _, variants in rows:
        for variant in filter(None, variants.split(", ")):
            assert load_config(f"{name}:{variant}")
    assert str(ROOT / "launch/slurm.sbatch") in scripts or str(ROOT / "filip_jax/launch/slurm.sbatch") in scripts


@pytest.mark.parametrize("name", shipped_configs())
def test_a_copy_is_the_config_wherever_it_lies(elsewhere, name):
    assert main(["configs", name]) == 0 and main(["configs", name, "--output=new/mine.py"]) == 0
    file = shipped_configs()[name]
    assert (elsewhere / file.name).read_bytes() == (elsewhere / "new/mine.py").read_bytes() == file.read_bytes()
    assert load_config("new/mine") == load_config(str(file))


def test_a_copy_overwrites_nothing(elsewhere, capsys):
    (elsewhere / "demo.py").write_text("mine")
    (elsewhere / "link.py").symlink_to("nowhere.py")
    (elsewhere / "folder.py").mkdir()
    for words, message in (
        (["demo"], "demo.py exists already: name another file, --output=FILE.py"),
        (["demo", "--output=link.py"], "link.py exists already"),
        (["demo", "--output=folder.py"], "folder.py exists already"),
        (["demo", "--output=demo"], "--output=demo: a config is a Python file"),
        (["--output=x.py"], "--output=x.py: say which config to copy"),
        (["demos"], "NAME='demos' is not one of clip, demo, "),
        (["demo:quick"], "demo:quick: a copy has all variants, so name none: filip configs demo"),
        (["../configs/demo"], "NAME='../configs/demo' is not one of clip, demo, "),
    ):
        assert main(["configs", *words]) == 2 and message in capsys.readouterr().err
    assert (elsewhere / "demo.py").read_text() == "mine" and not (elsewhere / "nowhere.py").exists()


def test_the_version_is_printed_with_its_place_and_what_it_runs_on(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    python, jax = ".".join(map(str, sys.version_info[:3])), importlib.metadata.version("jax")
    line = f"filip_jax {filip_jax.__version__} from {ROOT / 'filip_jax'} (Python {python}, jax {jax})\n"
    assert end.value.code == 0 and capsys.readouterr().out == line


def as_setuptools_writes(extra, line):
    requirement = Requirement(line)
    requirement.marker = None
    return f'{requirement}; extra == "{extra}"'


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - {"test"}))
def test_the_command_for_an_extra_names_its_packages(monkeypatch, extra, installed):
    """With the metadata of an installation, and of a tree that is not installed."""

    def requires(name):
        if not installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return ["jax<0.13,>=0.10.2", *(as_setuptools_writes(name, line) for name in EXTRAS for line in EXTRAS[name])]

    monkeypatch.setattr(extras.metadata, "requires", requires)
    command = extras.pip_install(extra)
    assert shlex.split(command) == ["pip", "install", *EXTRAS[extra]]
    assert "'" in command  # a bare < or > would be the shell's


def test_messages_name_extras_that_exist():
    """Of every call of extra_module, extra_folder and pip_install whose extra is written there."""
    position = {"extra_module": 1, "extra_folder": 1, "pip_install": 0}
    names = set()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and (place := position.get(getattr(node.func, "id", None))) is not None:
                argument = node.args[place]
                names |= {argument.value} if isinstance(argument, ast.Constant) else set()
    assert {"clean", "demo", "eval", "plan", "wandb"} <= names <= set(EXTRAS)


def test_the_table_of_extras_is_that_of_setup():
    text = (ROOT / "docs/install.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` +\| .* \| (.*?) +\|$", text, re.MULTILINE))
    assert list(rows) == list(EXTRAS) == sorted(EXTRAS)
    for extra in set(EXTRAS) - {"test"}:
        assert rows[extra].split(", ") == [re.match(r"[^<>=]+", line)[0] for line in EXTRAS[extra]], extra


# The page is imported only after `filip serve` has asked for what it needs, with a message.
BEHIND = {"starlette": "search/page/", "uvicorn": "search/page/"}


def test_what_is_imported_is_required():
    """By the base alone: what an extra brings is imported by name, with a message."""
    lines = SETUP["options"]["install_requires"].strip().split("\n")
    required = {canonicalize_name(Requirement(line).name) for line in lines} | {"jaxlib"}  # which JAX pins
    distributions = importlib.metadata.packages_distributions()
    tops = {name.partition(".")[0]: file for file in FILES for name in imports(file)}
    for top in set(tops) - sys.stdlib_module_names - {"filip_jax", *BEHIND}:
        assert required & set(map(canonicalize_name, distributions[top])), f"{tops[top]} imports {top}"


# Refuses the packages that are named on the command line, then runs the code that follows.
WITHOUT = """
import sys
class Others:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"{name} is not to be imported", name=name)
sys.meta_path.insert(0, Others)
"""


def run_with(packages, code):
    """Run the code where, of all packages that are installed, these and filip_jax alone can be imported."""
    others = set(importlib.metadata.packages_distributions()) - {"filip_jax", *packages}
    words = [sys.executable, "-c", WITHOUT + code, ",".join(others)]
    return subprocess.run(words, capture_output=True, text=True)


def with_requirements(names):
    """The top modules of these distributions and of all that they require."""
    distributions, todo = set(), list(names)
    while todo:
        if (name := canonicalize_name(todo.pop())) not in distributions:
            distributions.add(name)
            required = map(Requirement, importlib.metadata.requires(name) or ())
            todo += [each.name for each in required if not each.marker or each.marker.evaluate({"extra": ""})]
    tops = importlib.metadata.packages_distributions().items()
    return [top for top, owners in tops if distributions & set(map(canonicalize_name, owners))]


@pytest.mark.smoke
def test_the_losses_need_jax_numpy_and_jaxtyping_alone():
    # JAX 0.10 imports absl in its language of kernels.
    packages = with_requirements(["absl-py", "jax", "jaxtyping", "numpy"])
    assert not {"flax", "ml_collections", "orbax", "etils"} & set(packages)
    loss = "from filip_jax.losses import token_similarity; import numpy as np; "
    loss += "print(token_similarity(np.ones((1, 2, 3)), np.ones((1, 2, 3)), np.ones((1, 2), bool))[0].item())"
    done = run_with(packages, loss)
    assert (done.returncode, done.stdout) == (0, "3.0\n"), done.stderr
    assert run_with(packages, "import filip_jax.models").returncode == 1  # the search finds what it looks for


@pytest.mark.smoke
@pytest.mark.parametrize("command", ["", *"train plan sweep report eval inspect data align configs".split()])
def test_help_loads_no_package_of_others(command):
    """So it is there at once."""
    done = run_with([], f"from filip_jax.cli import main; main('{command} --help'.split())")
    assert done.returncode == 0 and done.stdout.startswith(f"usage: filip {command}".rstrip()), done.stderr


def test_the_public_names_are_shown_and_loaded_when_asked_for():
    done = run_with([], "import filip_jax; print(*dir(filip_jax))")
    assert done.stdout == "__version__ inference load_model losses models\n", done.stderr
    assert all(getattr(filip_jax, name) for name in dir(filip_jax))
    listed = re.findall(r"^  (\w+)  +\S", filip_jax.__doc__, re.MULTILINE)  # which help(filip_jax) shows first
    assert sorted(listed) == dir(filip_jax)
    with pytest.raises(AttributeError, match="no attribute 'load_models'"):
        filip_jax.load_models  # noqa: B018
