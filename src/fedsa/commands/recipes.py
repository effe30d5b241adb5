"""``fedsa recipes``: the recipes that come with fedsa."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["command"]


def command(
    name: Annotated[str | None, typer.Argument(help="Print this recipe's text.")] = None,
    settings: Annotated[bool, typer.Option("--settings", help="Describe every setting, as Markdown.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print a list of objects.")] = False,
) -> None:
    """List the recipes that come with fedsa, or print one."""
    import tomllib

    from fedsa.commands.shared.display import print_json, print_table
    from fedsa.errors import UserError, near
    from fedsa.recipe import recipe_names

    if settings:
        from fedsa.commands.shared.settings import describe_settings

        print(describe_settings())
        return
    texts = recipe_names()
    if name is not None:
        if name not in texts:
            raise UserError(f"no recipe {name!r}; {near(name, texts)}")
        print(texts[name], end="")
        return
    entries = [
        {"name": name, "description": tomllib.loads(text).get("description", "")} for name, text in texts.items()
    ]
    if json:
        print_json(entries)
        return
    print_table(["recipe", "what it is"], [[entry["name"], entry["description"]] for entry in entries])
    print(
        "\nfedsa recipes NAME prints one; save it under your own name to change it, "
        "or use fedsa run NAME --set KEY=VALUE"
    )
