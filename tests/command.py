"""The command line, run in this process."""

import sys
from collections import namedtuple

from vidiff.cli.main import main

Done = namedtuple("Done", "returncode stdout stderr")


def in_process(monkeypatch, capsys, cwd, *arguments):
    """Run ``vidiff ARGUMENTS`` in the folder ``cwd``, with a cache of its own."""
    monkeypatch.setattr(sys, "argv", ["vidiff", *map(str, arguments)])
    monkeypatch.setenv("XDG_CACHE_HOME", str(cwd / "cache"))
    monkeypatch.chdir(cwd)
    capsys.readouterr()
    try:
        main()
    except SystemExit as stopped:
        return Done(stopped.code or 0, *capsys.readouterr())
    return Done(0, *capsys.readouterr())
