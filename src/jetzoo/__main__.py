"""``python -m jetzoo`` is the command ``jetzoo``."""

import sys

from jetzoo.cli import main

sys.exit(main())
