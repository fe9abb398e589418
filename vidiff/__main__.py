"""``python -m vidiff``."""

from vidiff.cli.main import main

main()
