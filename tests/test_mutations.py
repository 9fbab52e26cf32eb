"""The mutations can be made, their table is that of their outcomes, and the script finds what notices one."""

import ast

import mutate
import pytest
from conftest import ROOT

MUTATIONS = mutate.read_mutations()
TOY = {
    "setup.cfg": "[tool:pytest]\nmarkers =\n    slow: later\n    slurm: never\n",
    "filip_jax/__init__.py": "",
    "filip_jax/sums.py": "def add(a, b):\n    return a + b\n\n\ndef double(a):\n    return 2 * a\n\n\ndef unused(a):\n    return a\n",
    "tests/conftest.py": "from hypothesis import settings\n\nsettings.register_profile('all')\n",
    "tests/test_named.py": "from filip_jax.sums import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n",
    "tests/test_others.py": (
        "import pytest\nfrom filip_jax.sums import double\n\n\n@pytest.mark.slow\ndef test_double():\n    assert double(3) == 6\n"
    ),
}


@pytest.mark.parametrize("number", range(len(MUTATIONS)))
def test_a_mutation_changes_the_code_of_one_place(number):
    mutation = MUTATIONS[number]
    text = (ROOT / "filip_jax" / mutation.file).read_text()
    before, after = (ast.dump(ast.parse(each)) for each in (text, mutation.applied(text)))
    assert before != after
    for name in mutation.tests:
        file, _, test = name.partition("::")
        assert f"def {test}" in (ROOT / "tests" / file).read_text(), name


def test_mutations_are_different():
    assert len({mutation.digest for mutation in MUTATIONS}) == len(MUTATIONS) >= 40


def test_the_table_is_that_of_the_outcomes():
    outcomes = mutate.read_outcomes(MUTATIONS)
    assert mutate.TABLE.read_text() == mutate.table(MUTATIONS, outcomes), "run python tests/mutate.py"
    assert [each.what for each in MUTATIONS if not outcomes.get(each.digest, {}).get("fast")] == []


@pytest.mark.parametrize("text, times", [("return b", 0), ("a + b; a + b", 2)])
def test_a_text_that_does_not_stand_there_once_is_refused(text, times):
    mutation = mutate.Mutation("sums.py", "swap", "sums are differences", "a + b", "a - b", ())
    with pytest.raises(ValueError, match=f"sums.py holds 'a \\+ b' {times} times"):
        mutation.applied(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    "old, new, named_only, fast, whole",
    [
        ("a + b", "a - b", True, "tests/test_named.py::test_add", "tests/test_named.py::test_add"),
        ("2 * a", "3 * a", True, "", ""),
        ("2 * a", "3 * a", False, "", "tests/test_others.py::test_double"),
    ],
)
def test_the_first_test_that_notices_is_found(tmp_path, monkeypatch, old, new, named_only, fast, whole):
    for name, text in TOY.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(mutate, "ROOT", tmp_path)
    mutation = mutate.Mutation("sums.py", "swap", "sums are differences", old, new, ("test_named.py",))
    outcome = mutate.outcome_of(mutation, named_only)
    searched = "named" if named_only else "whole"
    assert outcome == {"fast": fast, "all": whole, "searched": searched, "checked": ""}
    assert (tmp_path / "filip_jax/sums.py").read_text() == TOY["filip_jax/sums.py"]
