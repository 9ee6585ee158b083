"""`python -m convbench.registry`: the command line, also from a source tree that was never installed."""

from __future__ import annotations

from convbench.registry.cli.main import main

if __name__ == "__main__":
    main()
