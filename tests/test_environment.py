import shlex
import subprocess

import pytest

from tinlab import environment


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout of its own in which tinlab seems to run."""
    source = tmp_path / "src" / "tinlab" / "environment.py"
    for path in (source, tmp_path / "results" / "results.csv", tmp_path / "RESULTS.md"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("one\n")
    who = ["-c", "user.name=x", "-c", "user.email=x@x"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(environment, "__file__", str(source))
    monkeypatch.delenv("TINLAB_COMMIT", raising=False)
    return tmp_path


def test_a_changed_source_is_marked_and_added_results_are_not(checkout):
    clean = environment.commit()
    assert clean is not None
    assert len(clean) == 12
    (checkout / "results" / "results.csv").write_text("two\n")
    (checkout / "RESULTS.md").write_text("two\n")
    assert environment.commit() == clean
    (checkout / "src" / "tinlab" / "environment.py").write_text("two\n")
    assert environment.commit() == clean + "+"


@pytest.mark.parametrize(("program", "name"), [("/usr/bin/tinlab", "tinlab"), ("x/__main__.py", "tinlab")])
def test_a_command_can_be_typed_again(program, name, monkeypatch):
    words = ["train", "my recipe.json", "--set", "data.image_sizes=[32, 64]"]
    monkeypatch.setattr("sys.argv", [program, *words])
    assert shlex.split(environment.command()) == [name, *words]


def test_a_tree_without_its_history_can_be_told_its_commit(monkeypatch):
    monkeypatch.setenv("TINLAB_COMMIT", "0123456789ab")
    assert environment.commit() == "0123456789ab"
    monkeypatch.delenv("TINLAB_COMMIT")
    assert environment.commit() != "0123456789ab"
