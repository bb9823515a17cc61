"""Colours and fonts of figures, on the page and in PNGs."""

from typing import Any

KEPT, DROPPED = "#0072b2", "#e69f00"
"""Blue and orange of Okabe and Ito's palette, which colour-blind readers can distinguish."""
MARK = "#c2410c"
"""Lines of thresholds and of zero."""
RAW = "#9aa4b1"
INK, PAPER = "#10202b", "#ffffff"
"""Text on light and on dark cells."""
EMPTY = "#80808018"
"""Cells without a conversation."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', Arial, sans-serif"

SEQUENTIAL = ("#def5e5", "#8ad9b1", "#40b7ad", "#348fa7", "#37659e", "#413d7b", "#2e1e3b")
"""Seaborn's `mako` without its black end, light for low values: lightness is linear in the value, so that colour-blind
readers can distinguish all steps."""
DIVERGING = (
    *("#134b85", "#2f78b3", "#5da2cb", "#9dcae1", "#d2e5ef"),
    "#f2f0eb",
    *("#fce0ba", "#fbbf74", "#e8932f", "#c5690d", "#994a07"),
)
"""Vega's `blueorange`, light in the middle."""
NIGHT: dict[str, tuple[str, ...]] = {
    SEQUENTIAL[0]: SEQUENTIAL[::-1],
    DIVERGING[0]: (
        *("#9fd4fb", "#66b1e0", "#3a86ba", "#256087", "#1c3d55"),
        "#20272e",
        *("#4a3515", "#7d500f", "#b56f14", "#ea9a35", "#fcc680"),
    ),
    INK: (PAPER, INK),
    DROPPED: ("#f0b23e", "#56a9e8", RAW),  # the two arms of a law, as lines, and a third test set
}
"""Colour ranges in dark mode, by the first colour of the range that they replace: dark for low values."""

CONFIG: dict[str, Any] = {
    "background": "transparent",
    "font": FONT,
    "view": {"stroke": None},
    "scale": {"invalid": {"color": {"value": EMPTY}}},
    "axis": {
        "domain": False,
        "ticks": False,
        "grid": False,
        "labelFontSize": 11,
        "labelPadding": 5,
        "labelColor": "#4a5562",
        "labelLimit": 170,
        "titleFontSize": 11.5,
        "titleFontWeight": "normal",
        "titleColor": "#4a5562",
        "titlePadding": 8,
        "gridColor": "#8080802e",
    },
    "legend": {
        "orient": "top",
        "direction": "horizontal",
        "gradientLength": 150,
        "gradientThickness": 8,
        "labelFontSize": 10.5,
        "labelColor": "#4a5562",
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "titleColor": "#4a5562",
        "titleLimit": 320,
        "offset": 8,
    },
    "title": {"fontSize": 13, "fontWeight": 600, "anchor": "start", "color": "#1c2733", "offset": 10},
}
"""Configuration of Vega-Lite; the page's style sheet recolours text in dark mode."""
