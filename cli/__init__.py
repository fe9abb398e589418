"""The ``vidiff`` command: one module for each subcommand."""
