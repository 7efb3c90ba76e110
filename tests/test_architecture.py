"""Data flows one way: a module imports only from modules above it, and heavy libraries have one home."""

import ast
import re
import sys
from pathlib import Path

import ddstudy

PACKAGE = Path(__file__).parent.parent / "ddstudy"
ORDER = [
    "errors", "spec", "spec.axes", "spec.schema", "spec.files",
    "images", "images.tiling", "images.files", "images.volumes", "images.inputs", "images.metrics",
    "priors", "priors.deep_decoder",
    "fit", "fit.reference", "fit.simd", "fit.kernels_cpu", "fit.kernels_cuda", "fit.fused",
    "study", "study.load", "study.stability", "study.evaluate",
    "store", "store.urls", "store.leases", "store.optuna_rows", "store.records", "store.study", "store.writer",
    "store.database", "study.samplers", "execution", "execution.executors", "execution.ray_pool", "study.runner",
    "report", "report.tables", "report.thesis", "report.claims", "report.comparison", "report.images",
    "report.figures", "report.panels", "report.contents", "report.page", "notebook", "dashboard", "terminal", "cli",
]  # fmt: skip
HOMES = {
    "pydantic": {"spec.schema", "spec.files", "report.panels"},
    "nibabel": {"images.files", "images.volumes"},
    "tifffile": {"images.files"},
    "imagecodecs": {"images.files"},
    "PIL": {"images.files"},
    "cv2": {"images.volumes", "images.inputs", "report.images"},
    "opensimplex": {"images.inputs"},
    "piq": {"images.metrics"},
    "numba": {"fit.simd", "fit.kernels_cpu"},
    "llvmlite": {"fit.simd", "fit.kernels_cpu"},
    "triton": {"fit.kernels_cuda"},
    "optuna": {
        *("store.optuna_rows", "store.records", "store.study", "store.writer", "store.database"),
        *("study.samplers", "study.runner", "report.tables", "dashboard"),
    },
    "sqlalchemy": {"store.urls", "store.leases", "store.optuna_rows", "store.database"},
    "psycopg": {"store.urls"},
    "ray": {"execution.ray_pool"},
    "scipy": {"report.claims"},
    "plotly": {"report.figures", "report.page"},
    "optuna_dashboard": {"dashboard"},
    "typer": {"cli"},
    "rich": {"terminal", "cli"},
}


def modules() -> dict[str, Path]:
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items() if name != "__init__"}


def imports(path: Path) -> set[str]:
    """Dotted names that a module imports, wherever in it, unless for types only."""
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    guarded = [n for n in ast.walk(tree) if isinstance(n, ast.If) and getattr(n.test, "id", "") == "TYPE_CHECKING"]
    skipped = {id(inner) for outer in guarded for inner in ast.walk(outer)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def test_every_module_has_its_place() -> None:
    assert set(modules()) == set(ORDER)


def test_the_package_tells_its_rooms_in_their_order() -> None:
    told = re.findall(r"^    (\w+)", ddstudy.__doc__ or "", flags=re.MULTILINE)
    assert told == [name for name in ORDER if "." not in name]


def test_modules_import_only_from_above() -> None:
    for name, path in modules().items():
        ours = {target.removeprefix("ddstudy.") for target in imports(path) if target.startswith("ddstudy.")}
        for target in ours & set(ORDER):
            # a package hands a call to its own modules below
            below = ORDER.index(target) > ORDER.index(name) and not target.startswith(f"{name}.")
            assert not below, f"{name} imports {target}, which is below it"


def test_libraries_have_one_home() -> None:
    for name, path in modules().items():
        for target in imports(path):
            library = target.partition(".")[0]
            assert name in HOMES.get(library, {name}), f"{name} imports {library}"
            assert library in sys.stdlib_module_names | {"ddstudy", "numpy", "torch", "pandas", "filelock"} | set(HOMES)
