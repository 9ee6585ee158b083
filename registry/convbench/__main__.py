"""`python -m convbench` is `convbench`. The namespace has no `__init__.py`; this file is in this room alone."""

from convbench.registry.cli.main import main

if __name__ == "__main__":
    main()
