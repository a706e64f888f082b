"""``python -m contentmotion``."""

import sys

from contentmotion.cli import main

sys.exit(main())
