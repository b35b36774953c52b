"""`python -m trainer` is the command `trainer`, for launchers that start a module."""

import sys

from trainer.cli import main

sys.exit(main())
