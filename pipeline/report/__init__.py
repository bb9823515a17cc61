"""A report: numbers of a corpus become figures, figures become one page that needs nothing else.

`finished` reads a run, `counts` and its neighbours make frames, `charts` draws them, `parts` names what a page consists
of, `page` renders it and `folder` puts it where it belongs. Whoever has other numbers adds a `parts.Section`.
"""
