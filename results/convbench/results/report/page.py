"""report.html: a run, or a comparison, as one page that needs nothing else.

Whatever comes from a plugin, a file or the environment is untrusted and escaped by the templates. Should
something slip through all the same, the page's content security policy runs no script but the one it was
written with, and loads nothing at all.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from convbench.results.analysis.contents import Contents
from convbench.results.analysis.flags import flags_in_words
from convbench.results.charts.comparison_charts import comparison_charts
from convbench.results.charts.render import figure
from convbench.results.charts.run_charts import group_charts, overview, rooflines, scalings
from convbench.results.comparison.compare import Comparison
from convbench.results.comparison.formats import legend as verdict_legend
from convbench.results.report import findings as narrative
from convbench.results.storage.environment import FACTS
from convbench.results.tables.comparison_table import facts, not_run, plain, warnings
from convbench.results.tables.escaping import printable
from convbench.results.tables.page_tables import (
    comparison_tables,
    curves_table,
    failures_table,
    peaks_table,
    results_table,
    rows_table,
    scaling_table,
    served_table,
    shared_remarks,
    terms,
)
from convbench.results.wording import count

DRAWN = 4  # comparison groups with charts; where there are more, each of these has one chart only
ELSEWHERE = ("torch_build", "peaks", "planned_processes")  # have places of their own
UNITS = ("_gb", "_mhz")  # endings of names that repeat the unit
MISSING: tuple[Any, ...] = (None, "", [], {})


def report_html(contents: Contents) -> str:
    """A run as a page."""
    found = narrative.findings(contents)
    results = results_table(contents)
    groups = contents.table.groups
    brief = len(groups) > DRAWN
    chapters = [
        (finding.title, [figure(chart) for chart in group_charts(contents, group, brief=brief)])
        for finding, group in zip(found[:DRAWN], groups[:DRAWN], strict=True)
    ]
    forest = overview(contents.table)
    return page(
        "report.html.j2",
        title=" and ".join(dict.fromkeys(row.suite for row in contents.rows)) or "Nothing was run",
        run=contents.name,
        facts=facts(contents.table.rows, contents.environment) if contents.table.rows else [],
        warnings=[
            *map(plain, warnings(contents.table, contents.environment)),
            *flags_in_words(contents.table.rows),
        ],
        overview=narrative.overview(contents),
        victories=narrative.victories(found),
        findings=found,
        overall=[figure(forest)] if forest else [],
        chapters=[(title, figures) for title, figures in chapters if figures],
        undrawn=max(len(found) - DRAWN, 0),
        results=results,
        under_roof=narrative.roofline_findings(contents),
        rooflines=[figure(chart) for chart in rooflines(contents)],
        peaks=peaks_table(contents),
        scalings=[figure(chart) for chart in scalings(contents)],
        scaling=scaling_table(contents),
        served=served_table(contents),
        failures=failures_table(contents),
        not_run=f"{not_run(contents.table)}." if contents.table.not_run else "",
        curves=curves_table(contents),
        rows=rows_table(contents),
        processes=count(len(contents.rows), "process", "processes"),
        environment=list(environment_facts(contents.environment)),
        torch_build=contents.environment.get("torch_build"),
        suite=contents.suite,
        terms=terms(results) if results else [],
    )


def comparison_html(comparison: Comparison) -> str:
    """A comparison as a page."""
    return page(
        "comparison.html.j2",
        title=" and ".join(comparison.files),
        sentences=narrative.comparison_findings(comparison),
        figures=[figure(chart) for chart in comparison_charts(comparison)],
        warnings=[f"{remark}." for remark in comparison.remarks] + shared_remarks(comparison),
        tables=comparison_tables(comparison),
        explanation=verdict_legend(comparison),
    )


def page(template: str, **values: Any) -> str:
    """Fill in a template."""
    environment = Environment(
        loader=PackageLoader("convbench.results.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = prose
    style, script = (resource(name) for name in ("report.css", "report.js"))
    policy = (
        f"default-src 'none'; style-src '{digest(style)}'; script-src '{digest(script)}'; base-uri 'none'"
    )
    rendered = environment.get_template(template).render(
        style=Markup(style), script=Markup(script), policy=policy, **values
    )
    return printable(rendered)


def resource(name: str) -> str:
    """A file beside the templates."""
    return (files("convbench.results.report") / "templates" / name).read_text(encoding="utf-8")


def digest(text: str) -> str:
    """A source of a content security policy that allows just this text."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def prose(sentence: str) -> str:
    """A sentence in which numbers stay together with their units."""
    return re.sub(r"(?<=\d) (?=%|ms\b|GFLOP/s|GB/s)", "\N{NO-BREAK SPACE}", sentence)


class EnvironmentFact(NamedTuple):
    """What one key says: a text, or several parts with names of their own; `meaning` explains the key."""

    name: str
    meaning: str
    text: str
    parts: tuple[tuple[str, str], ...] = ()


def environment_facts(environment: Mapping[str, Any]) -> Iterator[EnvironmentFact]:
    """Each fact that is known."""
    for name, value in environment.items():
        if name in ELSEWHERE or value in MISSING:
            continue
        fact = FACTS.get(name)
        unit = f" {fact.unit}" if fact and fact.unit and not isinstance(value, dict) else ""
        for ending in UNITS:
            name = name.removesuffix(ending)
        parts = value.items() if isinstance(value, dict) else ()
        yield EnvironmentFact(
            name.replace("_", " ") + (f", {fact.unit}" if parts and fact and fact.unit else ""),
            fact.description if fact else "",
            "" if parts else in_words(value) + unit,
            tuple((str(part), in_words(each)) for part, each in parts if each not in MISSING),
        )


def in_words(value: Any) -> str:
    """A value of JSON as a text."""
    if isinstance(value, dict):
        return "; ".join(f"{name} {in_words(each)}" for name, each in value.items() if each not in MISSING)
    if isinstance(value, list):
        return ", ".join(map(in_words, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
