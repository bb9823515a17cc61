"""`python -m pipeline.cli`: the same as `refine`."""

from pipeline.cli import main

main()
