"""Data flows one way: a module imports only from modules above it, and heavy libraries have one home."""

import ast
import functools
import importlib
import inspect
import re
import sys
from pathlib import Path

from private_names import is_private, own_names, private_uses

import ddstudy

PACKAGE = Path(__file__).parent.parent / "ddstudy"
PANELS = [
    "base", "plane", "parallel", "importance", "by_axis", "members", "best", "outputs", "inputs", "ranks", "transfer",
    "slices", "by_level", "stopping", "judges", "priors", "cases", "history",
]  # fmt: skip
ORDER = [
    "errors", "images.metrics", "spec", "spec.options", "spec.axes", "spec.cases", "spec.schema", "spec.files",
    "images", "images.tiling", "images.files", "images.volumes", "images.slices", "images.kspace", "images.targets",
    "images.inputs",
    "tasks", "tasks.base", "tasks.operators", "tasks.measurements", "tasks.judges", "tasks.cases",
    "priors", "priors.base", "priors.deep_decoder", "priors.deep_decoder.network", "priors.networks",
    "priors.conv_decoder", "priors.dip", "priors.siren", "priors.handcrafted",
    "solvers", "solvers.base", "solvers.fidelity", "solvers.optimisers", "solvers.cuda", "solvers.torch_loop",
    "solvers.direct",
    "solvers.fused", "solvers.fused.kernels", "solvers.fused.step", "solvers.fused.groups",
    "solvers.fused.simd", "solvers.fused.kernels_cpu", "solvers.fused.kernels_cuda",
    "study", "study.load", "study.stability", "study.stopping", "study.evaluate",
    "store", "store.urls", "store.leases", "store.optuna_rows", "store.records", "store.study", "store.writer",
    "store.database", "study.samplers", "study.over_cases", "execution", "execution.executors", "execution.ray_pool",
    "study.planner", "study.forecasting", "study.runner",
    "report", "report.words", "report.tables", "report.inverse", "report.anova", "report.intervals", "report.priors",
    "report.cases", "report.facts",
    "report.comparison", "report.images", "report.figures", "report.panels",
    *(f"report.panels.{name}" for name in PANELS), "report.answer", "report.page", "report.status",
    "report.notebook",
    "report.writing", "report.slice_folder",
    "thesis", "thesis.published", "thesis.verdicts", "thesis.findings", "thesis.panels", "image_fit", "results", "api",
    "volume_fit", "housekeeping", "first_study", "web", "dashboard", "live", "terminal", "cli",
]  # fmt: skip
MATHEMATICS = (
    "images.tiling", "images.inputs", "images.metrics", "priors", "solvers", "study.stability", "study.stopping",
    "study.load",
)  # fmt: skip
SURFACE = {"results", "api", "housekeeping", "first_study", "dashboard", "live", "terminal", "cli"}  # what users call
HOMES = {
    "pydantic": {
        *("spec.options", "spec.cases", "spec.schema", "spec.files", "report.panels", "thesis.panels"),
        *(f"report.panels.{name}" for name in PANELS),
    },
    "nibabel": {"images.files", "images.volumes", "images.slices"},
    "tifffile": {"images.files"},
    "imagecodecs": {"images.files"},
    "h5py": {"images.kspace"},
    "sigpy": {"tasks.measurements"},
    "PIL": {"images.files"},
    "cv2": {"images.volumes", "images.inputs", "report.images"},
    "opensimplex": {"images.inputs"},
    "piq": {"images.metrics"},
    "skimage": {"priors.handcrafted"},
    "numba": {"solvers.fused.simd", "solvers.fused.kernels_cpu"},
    "llvmlite": {"solvers.fused.simd", "solvers.fused.kernels_cpu"},
    "triton": {"solvers.fused.kernels_cuda"},
    "optuna": {
        *("store.optuna_rows", "store.records", "store.study", "store.writer", "store.database"),
        *("study.samplers", "study.over_cases", "study.forecasting", "study.runner", "housekeeping", "dashboard"),
    },
    "sqlalchemy": {"store.urls", "store.leases", "store.optuna_rows", "store.database"},
    "psycopg": {"store.urls"},
    "ray": {"execution.ray_pool"},
    "scipy": {"report.intervals"},
    "plotly": {"report.figures", "report.page"},
    "jinja2": {"report.page"},
    "optuna_dashboard": {"dashboard"},
    "typer": {"cli"},
    "rich": {"terminal", "cli"},
}
# what is private of a library: the one module that may import it, and touch it under these names
PRIVATE_HOMES = {"optuna": "store.optuna_rows", "optuna_dashboard": "dashboard", "numba": "solvers.fused.simd"}
PRIVATE_NAMES = {
    "execution.ray_pool": {"_private"},  # how `auto` is understood
    "solvers.fused.step": {"_base"},  # whose memory a view of a tensor is
    "solvers.cuda": {"_C", "_cuda_clearCublasWorkspaces"},  # torch's notes on CUDA name it for this
}


def modules() -> dict[str, Path]:
    names = {path: ".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py")}
    return {name.removesuffix(".__init__"): path for path, name in names.items() if name != "__init__"}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports(path: Path) -> set[str]:
    """Dotted names that a module imports, wherever in it, unless for types only."""
    found: set[str] = set()
    tree = tree_of(path)
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


def test_mathematics_takes_no_tables_of_a_study_file() -> None:
    for name, path in modules().items():
        if name.startswith(MATHEMATICS):
            tables = {target for target in imports(path) if re.match(r"ddstudy\.spec\..*(Spec|schema)", target)}
            assert not tables, f"{name} imports {tables}"


def test_only_what_users_call_knows_the_thesis() -> None:
    """Its room is a plug-in: a package without it works but for what is of the thesis."""
    knowing = {name for name, path in modules().items() if any(it.startswith("ddstudy.thesis") for it in imports(path))}
    assert {name for name in knowing if not name.startswith("thesis.")} <= SURFACE


def test_libraries_have_one_home() -> None:
    for name, path in modules().items():
        for target in imports(path):
            library = target.partition(".")[0]
            assert name in HOMES.get(library, {name}), f"{name} imports {library}"
            assert library in sys.stdlib_module_names | {"ddstudy", "numpy", "torch", "pandas", "filelock"} | set(HOMES)


def test_private_names_of_others_are_found() -> None:
    code = """
from optuna.study._frozen import FrozenStudy
from optuna.artifacts import ArtifactMeta
import ray._private.services
class Sampler(GPSampler):
    def __init__(self):
        self._own = self._rng
    def _mine(self):
        return self._own, super()._sample(), self.__dict__
class Derived(Sampler):
    def further(self, study):
        return self._own, self._mine(), study._study_id, getattr(study, "_storage"), study.sampler._optimize()
"""
    found = private_uses(ast.parse(code), {})
    imported = {"optuna.study._frozen:FrozenStudy", "ray._private.services"}
    assert found == imported | {"_rng", "_sample", "_study_id", "_storage", "_optimize"}


def test_what_is_private_of_a_library_has_one_home() -> None:
    """Optuna's were in eight modules: as many places to mend for its next version."""
    trees = {name: tree_of(path) for name, path in modules().items()}
    classes = own_names(trees.values())
    for name, tree in trees.items():
        for use in private_uses(tree, classes):
            library = re.split("[.:]", use)[0]
            touched = library == use  # no name says whose it is
            home = PRIVATE_HOMES["optuna"] if touched else PRIVATE_HOMES.get(library)
            assert name == home or use in PRIVATE_NAMES.get(name, set()), f"{name} uses {use}"
        for target in imports(modules()[name]):
            is_core = target.startswith("numba.core")  # of which numba promises nothing
            assert not is_core or name == PRIVATE_HOMES["numba"], f"{name} imports {target}"


def test_nothing_private_of_optuna_is_overridden_elsewhere() -> None:
    for name in HOMES["optuna"] - {PRIVATE_HOMES["optuna"]}:
        module = importlib.import_module(f"ddstudy.{name}")
        for kind in (it for _, it in inspect.getmembers(module, inspect.isclass) if it.__module__ == module.__name__):
            theirs = [base for base in kind.__mro__ if base.__module__.partition(".")[0] == "optuna"]
            names = set().union(*(vars(base) for base in theirs))
            ours = set().union(*(vars(it) for it in kind.__mro__ if it.__module__ == module.__name__))
            taken = {it for it in names & ours if is_private(it) and it != "_abc_impl"}
            assert not taken, f"{name}.{kind.__name__} overrides {', '.join(taken)}"
