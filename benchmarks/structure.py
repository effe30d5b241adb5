"""Count what the architecture is made of: rooms, imports between them, who takes a whole recipe, what is long.

    python benchmarks/structure.py                     # of src/fedsa beside this file
    python benchmarks/structure.py --src OTHER/src/fedsa --most 10

A room is a module or a package at the top level of fedsa. An arrow goes from one room to another that it imports from,
once however often it does, imports for type checking too. A function takes a whole recipe if a parameter of it is
annotated with ``Recipe``; a class holds one if a field of it is. Lengths are in lines, docstrings and decorators too;
a method is counted as a function by itself and as part of its class.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).resolve().parents[1] / "src" / "fedsa"


class Unit(NamedTuple):
    """A function, a class or a file, and its length in lines."""

    lines: int
    name: str


class Counts(NamedTuple):
    """What was counted."""

    modules: list[str]
    packages: list[str]
    arrows: set[tuple[str, str]]
    take_recipe: list[str]
    hold_recipe: list[str]
    files: list[Unit]
    classes: list[Unit]
    functions: list[Unit]


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Yield the rooms of a package that a file imports from."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            first, _, rest = node.module.partition(".")
            if first == package:
                yield from [rest.partition(".")[0]] if rest else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first, _, rest = alias.name.partition(".")
                if first == package and rest:
                    yield rest.partition(".")[0]


def is_recipe(annotation: ast.expr | None) -> bool:
    """Say whether an annotation names ``Recipe`` by itself, as an optional one, or in a string."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    if isinstance(annotation, ast.BinOp):
        return is_recipe(annotation.left) or is_recipe(annotation.right)
    return (isinstance(annotation, ast.Name) and annotation.id == "Recipe") or (
        isinstance(annotation, ast.Attribute) and annotation.attr == "Recipe"
    )


def length(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    """Return how many lines a definition has, from its first decorator on."""
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return (node.end_lineno or node.lineno) - first + 1


def counted(source: Path) -> Counts:
    """Count a package's files."""
    modules = sorted(path.stem for path in source.glob("*.py") if not path.stem.startswith("__"))
    packages = sorted(path.name for path in source.iterdir() if (path / "__init__.py").is_file())
    counts = Counts(modules, packages, set(), [], [], [], [], [])
    rooms = {*modules, *packages}
    for path in sorted(source.rglob("*.py")):
        inside, text = path.relative_to(source), path.read_text(encoding="utf-8")
        tree, room = ast.parse(text), inside.parts[0].removesuffix(".py")
        counts.files.append(Unit(len(text.splitlines()), str(inside)))
        counts.arrows.update((room, other) for other in imported(tree, source.name) if {room, other} <= rooms)
        for node in ast.walk(tree):
            name = f"{inside}:{getattr(node, 'lineno', 0)} {getattr(node, 'name', '')}"
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                counts.functions.append(Unit(length(node), name))
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                if any(is_recipe(argument.annotation) for argument in arguments):
                    counts.take_recipe.append(name)
            elif isinstance(node, ast.ClassDef):
                counts.classes.append(Unit(length(node), name))
                if any(isinstance(line, ast.AnnAssign) and is_recipe(line.annotation) for line in node.body):
                    counts.hold_recipe.append(name)
    arrows = {(one, other) for one, other in counts.arrows if one != other}
    return counts._replace(arrows=arrows)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--src", type=Path, default=SOURCE, help="the package's folder")
    parser.add_argument("--most", type=int, default=5, help="how many of the longest are named")
    options = parser.parse_args()
    counts = counted(options.src)
    both = {(one, other) for one, other in counts.arrows if (other, one) in counts.arrows}
    rows = {
        "rooms (top level)": f"{len(counts.modules)} modules + {len(counts.packages)} packages",
        "import arrows between rooms": len(counts.arrows),
        "pairs of rooms that import each other": len(both) // 2,
        "functions that take a whole Recipe": len(counts.take_recipe),
        "classes that hold a whole Recipe": len(counts.hold_recipe),
        "files, lines": f"{len(counts.files)}, {sum(unit.lines for unit in counts.files)}",
        "functions, median lines": (
            f"{len(counts.functions)}, {sorted(unit.lines for unit in counts.functions)[len(counts.functions) // 2]}"
        ),
        "files over 400 lines": sum(unit.lines > 400 for unit in counts.files),
        "classes over 250 lines": sum(unit.lines > 250 for unit in counts.classes),
        "functions over 60 lines": sum(unit.lines > 60 for unit in counts.functions),
    }
    for name, value in rows.items():
        print(f"{name:40} {value}")
    for name, units in (("file", counts.files), ("class", counts.classes), ("function", counts.functions)):
        for place, unit in enumerate(sorted(units, reverse=True)[: options.most]):
            print(f"{f'longest {name}' if not place else '':40} {unit.lines:4} {unit.name}")


if __name__ == "__main__":
    main()
