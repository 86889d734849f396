"""``python -m psvit_core``: the command line."""

import sys

from psvit_core.cli import main

sys.exit(main())
