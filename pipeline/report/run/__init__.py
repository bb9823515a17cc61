"""The report of a run: `frame` reads it, `bands` sorts it, `counts` counts, `sections` makes a page of the figures."""
