"""`python -m behestd`, and what the script `behestd` starts."""

from __future__ import annotations

from behestd.cli import main

if __name__ == "__main__":
    main()
