"""The page kit: parts of a page, charts, and the folder of a report. It knows no run and no experiment.

`parts` names what a page consists of, `charts` draws frames, `page` renders a `parts.Page` as one HTML file,
and `folder` writes it with its pictures and numbers. To show other numbers, make a `parts.Section` of them.
"""
