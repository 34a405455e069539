"""The command line: help is light, errors are messages with their exit code, init writes what loads, the reference pages are fresh."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dmoerm
from dmoerm.cli import main as cli
from dmoerm.cli.init import recipe_template
from dmoerm.cli.reference import COMMAND, built_verbs, pages
from dmoerm.errors import DataError
from dmoerm.recipe import load_recipe
from dmoerm.taxonomy import load_taxonomy, paper_taxonomy

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("verb", built_verbs())
def test_every_verb_shows_its_help(verb, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main([verb, "--help"])
    assert left.value.code == cli.DONE
    assert f"usage: dmoerm {verb}" in capsys.readouterr().out


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(["--version"])
    assert left.value.code == cli.DONE
    assert capsys.readouterr().out == f"dmoerm {dmoerm.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: VERB"),
        (["innit"], 'unknown verb "innit", did you mean "init"?'),
        (["init"], "the following arguments are required: FOLDER"),
        (["init", "x", "--overwrit"], "unrecognized arguments: --overwrit"),
    ],
)
def test_wrong_usage_leaves_with_2_and_says_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit) as left:
        cli.main(arguments)
    assert left.value.code == cli.USAGE
    assert message in capsys.readouterr().err


def test_init_writes_a_recipe_that_loads_and_the_papers_taxonomy(tmp_path, capsys):
    assert cli.main(["init", str(tmp_path / "my-rm")]) == cli.DONE
    recipe = load_recipe(tmp_path / "my-rm" / "recipe.yaml", check_files=False)
    assert recipe.data.comparisons == (tmp_path / "my-rm" / "comparisons.jsonl",)
    assert load_taxonomy(tmp_path / "my-rm" / "taxonomy.yaml") == paper_taxonomy()
    assert "dmoerm check" in capsys.readouterr().out


def test_init_leaves_existing_files_alone_unless_told_to_overwrite(tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("mine")
    assert cli.main(["init", str(tmp_path)]) == cli.FAILED
    assert re.search(r"^error: .*recipe\.yaml exist already\. .*--overwrite", capsys.readouterr().err)
    assert (tmp_path / "recipe.yaml").read_text() == "mine"
    assert not (tmp_path / "taxonomy.yaml").exists()
    assert cli.main(["init", str(tmp_path), "--overwrite"]) == cli.DONE
    assert (tmp_path / "recipe.yaml").read_text(encoding="utf-8") == recipe_template()


def test_every_commented_default_of_the_template_is_the_default(tmp_path):
    (tmp_path / "as_is.yaml").write_text(recipe_template(), encoding="utf-8")
    (tmp_path / "all_on.yaml").write_text(re.sub(r"(?m)^( *)#(?=\w)", r"\1", recipe_template()), encoding="utf-8")
    as_is, all_on = (load_recipe(tmp_path / name, check_files=False) for name in ("as_is.yaml", "all_on.yaml"))
    assert all_on == as_is


class FailingVerb:
    """A verb whose run raises what the test wants to see reported."""

    def __init__(self, error):
        self.error = error

    def add_arguments(self, parser):
        pass

    def run(self, args):
        raise self.error


@pytest.fixture
def failing(monkeypatch):
    def install(error):
        monkeypatch.setitem(sys.modules, "dmoerm.cli.failing", FailingVerb(error))
        monkeypatch.setitem(cli.VERBS, "failing", ("dmoerm.cli.failing", "fails"))

    return install


def test_an_error_of_ours_is_a_message_and_code_1(failing, capsys):
    failing(DataError("train.jsonl:41: empty"))
    assert cli.main(["failing"]) == cli.FAILED
    assert capsys.readouterr() == ("", "error: train.jsonl:41: empty\n")


@pytest.mark.parametrize("arguments", [["--debug", "failing"], ["failing", "--debug"]])
def test_debug_shows_the_traceback_before_or_after_the_verb(failing, capsys, arguments):
    failing(DataError("broken"))
    assert cli.main(arguments) == cli.FAILED
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupted_run_leaves_with_130(failing, capsys):
    failing(KeyboardInterrupt())
    assert cli.main(["failing"]) == cli.INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"


def test_a_full_disk_is_a_message(failing, capsys):
    failing(OSError(28, "No space left on device", "model.safetensors"))
    assert cli.main(["failing"]) == cli.FAILED
    assert "No space left on device: 'model.safetensors'" in capsys.readouterr().err


def test_a_fault_of_ours_keeps_its_traceback(failing):
    failing(TypeError("our mistake"))
    with pytest.raises(TypeError, match="our mistake"):
        cli.main(["failing"])


@pytest.mark.faults("F39")
def test_a_reader_that_leaves_early_gives_no_traceback(tmp_path):
    script = (
        "import sys\nfrom dmoerm.cli import main as cli\n"
        "class Verb:\n"
        "    def add_arguments(self, parser): pass\n"
        "    def run(self, args):\n"
        "        for _ in range(100000): print('a line that nobody reads')\n"
        "        return 0\n"
        "sys.modules['verb'] = Verb()\ncli.VERBS['verb'] = ('verb', 'prints')\nsys.exit(cli.main(['verb']))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == cli.FAILED
    assert errors == b""


class LoggingVerb(FailingVerb):
    def __init__(self):
        super().__init__(None)

    def run(self, args):
        logger = logging.getLogger("dmoerm.anything")
        logger.info("step 1 of 2")
        logger.warning("one row was cut")
        return cli.PARTLY_DONE


@pytest.mark.parametrize(("flags", "shown"), [([], "step 1 of 2\none row was cut\n"), (["-q"], "one row was cut\n")])
def test_progress_goes_to_stderr_and_quiet_keeps_warnings(monkeypatch, capsys, flags, shown):
    monkeypatch.setitem(sys.modules, "dmoerm.cli.logging_verb", LoggingVerb())
    monkeypatch.setitem(cli.VERBS, "logs", ("dmoerm.cli.logging_verb", "logs"))
    assert cli.main(["logs", *flags]) == cli.PARTLY_DONE
    assert capsys.readouterr() == ("", shown)


@pytest.mark.parametrize("name", ["cli.md", "recipe.md"])
def test_the_reference_pages_are_fresh(name):
    page = DOCS / name
    assert page.exists(), f"docs/{name} is missing; write it with: {COMMAND}"
    assert page.read_text(encoding="utf-8") == pages()[name], f"docs/{name} is stale; write it again with: {COMMAND}"
