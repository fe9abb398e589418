"""``python -m vidiff``."""

from vidiff.cli.main import main

if __name__ == "__main__":  # and not in the processes that read clips, which load this file again
    main()
