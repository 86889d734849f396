"""``python -m psvit_core``: the same as the command ``psvit``."""

import sys

from psvit_core.cli import main

sys.exit(main())
