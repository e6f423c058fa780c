"""`python -m aipc` is `aipc`."""

from __future__ import annotations

import sys

from aipc.cli import main

if __name__ == "__main__":
    sys.exit(main())
