"""The list of docs/design.md: a module imports what stands above it, and the mathematics knows neither Flax nor configs."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffad_jax

ROOT = Path(diffad_jax.__file__).parent
DESIGN = ROOT.parent / "docs" / "design.md"


def modules() -> list[str]:
    """The modules in the order of docs/design.md, whose list of modules this is the test of."""
    cells = [line.split("|")[1] for line in DESIGN.read_text().splitlines() if line.startswith("| `")]
    names = [name.removesuffix(".py").removesuffix("/") for cell in cells for name in re.findall("`(.+?)`", cell)]
    return names[: names.index("experiments")]


RANK = {module: rank for rank, module in enumerate(modules())}
MODULES = [module for module in RANK if module != "configs"]
MATHEMATICS = modules()[RANK["process"] : RANK["memory"] + 1]


def files(module: str) -> list[Path]:
    return sorted((ROOT / module).rglob("*.py")) or [ROOT / f"{module}.py"]


def imports(source: str) -> Iterator[str]:
    """Full names of everything imported, lazily or not; `from a import b` gives a.b, relative imports are refused."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def imported_modules(source: str) -> set[str]:
    """The modules of this package among the imports, and "configs" where these are."""
    parts = [name.split(".") for name in imports(source)]
    modules = {part[1] for part in parts if part[0] == "diffad_jax" and len(part) > 1}
    return modules | {part[0] for part in parts if part[0] == "configs"}


def test_every_module_has_its_place() -> None:
    found = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found - {"__init__"} == set(MODULES), "place it in docs/design.md"
    assert list(imports((ROOT / "__init__.py").read_text())) == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_stands_above_it(module: str) -> None:
    for path in files(module):
        for other in imported_modules(path.read_text()) - {module}:
            assert RANK[other] < RANK[module], f"{path.relative_to(ROOT)} imports {other}"


@pytest.mark.parametrize("module", MATHEMATICS)
def test_mathematics_knows_neither_flax_nor_configs(module: str) -> None:
    names = set(imports((ROOT / f"{module}.py").read_text()))
    assert not {name.split(".")[0] for name in names} & {"flax", "ml_collections"}
    assert "build" not in imported_modules((ROOT / f"{module}.py").read_text())


def test_configs_know_nothing_of_the_package_but_its_defaults() -> None:
    for path in (ROOT.parent / "configs").glob("*.py"):
        assert imported_modules(path.read_text()) <= {"configs", "defaults"}, path.name


def test_the_package_knows_nothing_of_configs() -> None:
    for path in ROOT.rglob("*.py"):
        assert "configs" not in imported_modules(path.read_text()), path.name


def test_the_reading_of_imports() -> None:
    lazily = "import diffad_jax.runs\ndef f():\n    from diffad_jax import scores, loop\n    from configs import x"
    assert imported_modules(f"{lazily}\nfrom diffad_jax.data.npz_pictures import x") == {
        "runs",
        "scores",
        "loop",
        "data",
        "configs",
    }
