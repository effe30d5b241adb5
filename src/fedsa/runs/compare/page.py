"""The page of a comparison: one HTML file that opens offline, needs no script and fetches nothing."""

from __future__ import annotations

import shlex

from fedsa.runs.compare.comparison import Comparison
from fedsa.runs.compare.figures import MOST_GROUPS, draw_curves, draw_differences
from fedsa.runs.compare.groups import setting
from fedsa.runs.compare.results import in_words, table_of
from fedsa.runs.pages.engine import page_engine, short

__all__ = ["as_html"]


def as_html(found: Comparison) -> str:
    """Return the page of a comparison. The same runs give the same text."""
    engine = page_engine(found.metric)
    engine.filters["setting"] = _setting
    table = table_of(found)
    others = [each.group.name for each in found.beside]
    curves = draw_curves(found)
    return engine.get_template("compare/compare.html.jinja").render(
        title=f"{', '.join(others)} against {found.reference.name}" if others else found.reference.name,
        in_words=in_words(found),
        table=table,
        metric=found.metric.replace("_", " "),
        found=found,
        curves=curves,
        undrawn=[group.name for group in found.groups[MOST_GROUPS:]],
        differences=draw_differences(found),
        clients=_clients(found),
        paired=[each for each in found.beside if each.clients],
        is_one_reference=_is_one_reference(found),
        settings=list(found.groups[0].settings),
        runs=[(group.name, [run.path.resolve().name for run in group.runs]) for group in found.groups],
        command=shlex.join(["fedsa", "compare", *(str(run.path) for group in found.groups for run in group.runs)]),
    )


def _clients(found: Comparison) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Client id to each group's value there, the reference's and the difference; the order is that of ids."""
    table: dict[str, dict[str, tuple[float, float, float]]] = {}
    for each in found.beside:
        for pair in each.clients:
            table.setdefault(pair.client, {})[each.group.name] = (pair.own, pair.against, pair.difference)
    return dict(sorted(table.items()))


def _setting(value: object) -> str:
    """Return a setting's value as text; folders of the machine are left out.

    >>> _setting("/home/me/sites"), _setting(False)
    ('…/sites', 'false')
    """
    return short(value) if isinstance(value, str) else setting(value)


def _is_one_reference(found: Comparison) -> bool:
    """Whether each client's value in the reference is the same beside all groups, as it is where seeds are the same."""
    values: dict[str, set[float]] = {}
    for each in found.beside:
        for pair in each.clients:
            values.setdefault(pair.client, set()).add(pair.against)
    return all(len(own) == 1 for own in values.values())
