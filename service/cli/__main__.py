"""`python -m service.cli` is `basin`."""

from service.cli import main

main()
