"""`python -m pico_analyze` is the command `pico-analyze`."""

from pico_analyze.cli import main

main()
