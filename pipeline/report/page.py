"""A page as one HTML file that loads nothing from the network and runs no script but its own."""

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import vl_convert

from pipeline import VERSION
from pipeline.report import charts, theme
from pipeline.report.charts import Chart
from pipeline.report.parts import Figure, Page, Table

HERE = Path(__file__).parent
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
"""Version of Vega-Lite whose specifications altair writes."""


def html(page: Page) -> str:
    """Render a page. Text of the corpus becomes escaped markup or JSON, never script or style."""
    scripts = [_library(), (HERE / "page.js").read_text(encoding="utf-8")]
    style = (HERE / "page.css").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    data = {
        "config": theme.CONFIG,
        "night": theme.NIGHT,
        "charts": [_spec(panel.chart) for figure in page.figures for panel in figure.panels if panel.chart is not None],
        "examples": page.examples.rows if page.examples else [],
        "command": page.examples.command if page.examples else "",
    }
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src {_hash(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template("page.html").render(
        page=page, policy=policy, style=style, scripts=scripts, data=script_json(data), cell=_cell, version=VERSION
    )


def script_json(value: object) -> str:
    """JSON for a script element: no text in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for c in "<>&\u2028\u2029":
        text = text.replace(c, f"\\u{ord(c):04x}")
    return text


def png(figure: Figure) -> bytes:
    """The charts of a figure as a picture, side by side; small multiples four per row."""
    specs: list[dict[str, Any]] = []
    data: dict[str, Any] = {}
    for panel, chart in ((panel, panel.chart) for panel in figure.panels if panel.chart is not None):
        spec = {**_spec(chart), "title": panel.title}
        data |= spec.pop("datasets", {})
        spec.pop("autosize", None)
        if spec.get("width") == charts.FULL:
            spec["width"] = 250 if figure.small else 560  # pixels
        specs.append(spec)
    whole = {
        "concat": specs,
        "columns": 4 if figure.small else 3,
        "spacing": 28,
        "datasets": data,
        "config": {**theme.CONFIG, "background": "#ffffff"},
        "title": {"text": figure.title, "fontSize": 16, "offset": 16},
        "padding": 16,
    }
    return bytes(vl_convert.vegalite_to_png(whole, vl_version=VEGA_LITE, scale=1.5))


def _spec(chart: Chart) -> dict[str, Any]:
    """The Vega-Lite specification of a chart, without the parts that all charts share."""
    whole: dict[str, Any] = chart.to_dict(validate=False)  # a tenth of the time
    return {key: value for key, value in whole.items() if key not in {"$schema", "config"}}


@cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, with the expression interpreter that needs no eval."""
    script = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE))
    if "</script" in script.lower() or "<!--" in script:
        raise ValueError("the scripts of vl-convert cannot be embedded in a page")
    return script


def _hash(text: str) -> str:
    """The source expression of a script or style in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _cell(table: Table, column: int) -> str:
    """The CSS class of a column: numbers are right-aligned."""
    numbers = all(isinstance(row[column], int | float) for row in table.rows)
    return "number" if table.rows and numbers else "text"
