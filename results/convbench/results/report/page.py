"""report.html: a run, or a comparison, as one page that needs nothing else.

Whatever comes from a plugin, a file or the environment is untrusted and escaped by the templates. Should
something slip through all the same, the page's content security policy runs no script but the one it was
written with, and loads nothing at all.
"""

from __future__ import annotations

import base64
import hashlib
import re
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from convbench.results.analysis.contents import Contents
from convbench.results.analysis.flags import flags_in_words
from convbench.results.analysis.roofline import under_the_roof
from convbench.results.charts.comparison_charts import comparison_charts
from convbench.results.charts.render import figure
from convbench.results.charts.run_charts import group_charts, overview, rooflines
from convbench.results.comparison.compare import Comparison
from convbench.results.comparison.formats import legend as verdict_legend
from convbench.results.report import findings as narrative
from convbench.results.report.comparison_findings import verdicts_in_words
from convbench.results.report.environment_facts import environment_facts
from convbench.results.report.run_facts import facts
from convbench.results.tables.comparison_table import not_run, warnings
from convbench.results.tables.coverage import served_table
from convbench.results.tables.escaping import printable
from convbench.results.tables.pair_tables import comparison_tables, shared_remarks
from convbench.results.tables.run_tables import (
    curves_table,
    failures_table,
    peaks_table,
    results_table,
    rows_table,
    terms,
)
from convbench.results.wording import count

DRAWN = 4  # comparison groups with charts; where there are more, each of these has one chart only


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
        facts=facts(contents),
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
        under_roof=under_the_roof(contents),
        rooflines=[figure(chart) for chart in rooflines(contents)],
        peaks=peaks_table(contents),
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
        sentences=verdicts_in_words(comparison),
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
    """A sentence whose numbers stay together with their units."""
    return re.sub(r"(?<=\d) (?=%|ms\b|GFLOP/s|GB/s)", "\N{NO-BREAK SPACE}", sentence)


def plain(markdown: str) -> str:
    """A warning without its marks."""
    return markdown.lstrip("> ").replace("**", "").replace("`", "")
