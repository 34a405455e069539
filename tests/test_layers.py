"""The house keeps its shape: imports run downwards, light modules stay light, the public names are complete."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dmoerm

ROOT = Path(dmoerm.__file__).parent

# A part may import parts of its own row and of the rows above it in this list (design: records first, cli last).
LAYERS = (
    ("errors", "records"),
    ("yaml_strict", "validation", "locations"),
    ("taxonomy", "recipe"),
    ("data",),
    ("labeling", "modeling"),
    ("training", "scoring"),
    ("evaluation",),
    ("serving", "integrations", "installation"),
    ("cli",),
)
RANK = {part: rank for rank, parts in enumerate(LAYERS) for part in parts}
HEAVY_PARTS = {"modeling", "training", "scoring"}
HEAVY_PACKAGES = {"torch", "transformers", "accelerate", "peft"}

FILES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def module_name(path):
    parts = ("dmoerm", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module):
    """The first name below dmoerm: a single-file module or a package."""
    return module.split(".")[1]


def imported(node, package):
    """Absolute names of the modules that one import statement may load."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        base = ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], *([base] if base else [])])
    if base != "dmoerm":
        return [base]
    # A lazy public name stands for the module that it comes from; anything else is a part itself.
    return [dmoerm._HOMES.get(alias.name, f"dmoerm.{alias.name}") for alias in node.names if not alias.name.startswith("__")]


def all_imports(path):
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imported(node, package)


def import_time_nodes(body):
    """Statements that run when the module is imported: no function bodies, nothing under TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from import_time_nodes(node.orelse)
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from import_time_nodes(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from import_time_nodes(handler.body)


def own_edges():
    for path in FILES:
        source = part_of(module_name(path))
        for target in all_imports(path):
            if target.startswith("dmoerm."):
                yield path, source, part_of(target)


def test_every_part_has_its_layer():
    assert {part_of(module_name(path)) for path in FILES} <= set(RANK)


def test_imports_run_downwards_only():
    upward = {f"{path.relative_to(ROOT)} imports {target}" for path, source, target in own_edges() if RANK[target] > RANK[source]}
    assert not upward


def test_no_two_parts_import_each_other():
    edges = {(source, target) for _, source, target in own_edges() if source != target}
    assert not {edge for edge in edges if edge[::-1] in edges}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_modeling_training_and_scoring_import_torch_at_the_top(path):
    if part_of(module_name(path)) in HEAVY_PARTS:
        return
    nodes = import_time_nodes(ast.parse(path.read_text(encoding="utf-8")).body)
    names = [name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for name in imported(node, "dmoerm")]
    assert not HEAVY_PACKAGES & {name.split(".")[0] for name in names}


def loaded_after(code):
    script = f"{code}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}), sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines())


def test_importing_dmoerm_loads_no_torch():
    assert not {*HEAVY_PACKAGES, "numpy", "pydantic"} & loaded_after("import dmoerm")


def test_help_loads_no_torch():
    code = "from dmoerm.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    assert not {*HEAVY_PACKAGES, "numpy", "pydantic"} & loaded_after(code)


def test_importing_every_light_module_loads_no_torch():
    light = [module_name(path) for path in FILES if part_of(module_name(path)) not in HEAVY_PARTS]
    assert not HEAVY_PACKAGES & loaded_after("import " + ", ".join(light))


def test_the_public_names_are_sorted_complete_and_there():
    assert list(dmoerm.__all__) == sorted(dmoerm.__all__)
    assert set(dmoerm.__all__) == {*dmoerm._HOMES, "__version__"}
    for name in dmoerm.__all__:
        assert getattr(dmoerm, name) is not None
    assert set(dmoerm.__all__) <= set(dir(dmoerm))


def test_the_names_for_type_checkers_are_the_public_names():
    tree = ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    names = {alias.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert names == dmoerm._HOMES


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'dmoerm' has no attribute 'nothing'"):
        _ = dmoerm.nothing
