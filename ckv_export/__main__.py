"""``python -m ckv_export``."""

import sys

from ckv_export.cli.main import main

sys.exit(main())
