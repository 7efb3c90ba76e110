"""Which private names a module takes of others: imported, touched, or called by `self` and not its own."""

import ast
from collections.abc import Iterable, Mapping


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(trees: Iterable[ast.Module]) -> dict[str, tuple[set[str], list[str]]]:
    """Of each class the private names that it defines itself, and the names of its bases."""
    found: dict[str, tuple[set[str], list[str]]] = {}
    for node in (node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
        names = {inner.name for inner in node.body if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)}
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name | ast.Attribute) and isinstance(inner.ctx, ast.Store):
                names.add(inner.id if isinstance(inner, ast.Name) else inner.attr)
        found[node.name] = ({name for name in names if is_private(name)}, [ast.unparse(base) for base in node.bases])
    return found


def _is_itself(node: ast.expr) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


class _Uses(ast.NodeVisitor):
    def __init__(self, classes: Mapping[str, tuple[set[str], list[str]]]) -> None:
        self.found: set[str] = set()
        self._classes = classes
        self._inside: list[str] = []

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._inside.append(node.name)
        self.generic_visit(node)
        self._inside.pop()

    def visit_Import(self, node: ast.Import) -> None:
        self.found |= {alias.name for alias in node.names if any(map(is_private, alias.name.split(".")))}

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            if any(map(is_private, [*(node.module or "").split("."), alias.name])):
                self.found.add(f"{node.module}:{alias.name}")

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.generic_visit(node)
        of_itself = _is_itself(node.value) and self._inside
        if is_private(node.attr) and not (of_itself and node.attr in self._names(self._inside[-1])):
            self.found.add(node.attr)

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in ("getattr", "hasattr", "setattr", "delattr", "attrgetter"):
            texts = (arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str))
            self.found |= {text for text in texts if is_private(text)}

    def _names(self, name: str) -> set[str]:
        names, bases = self._classes.get(name, (set[str](), []))
        return names.union(*(self._names(base) for base in bases))


def private_uses(tree: ast.Module, inherited: Mapping[str, tuple[set[str], list[str]]]) -> set[str]:
    """`package._module:name` of what is imported, `_name` of what is touched.

    Args:
        tree: of the module.
        inherited: `own_names` of the modules whose classes it may inherit from.
    """
    uses = _Uses({**inherited, **own_names([tree])})  # of two classes of a name, that of the module
    uses.visit(tree)
    return uses.found
