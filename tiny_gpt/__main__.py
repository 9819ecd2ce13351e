"""`python -m tiny_gpt` runs `tiny-gpt`."""

import sys

from tiny_gpt.cli.main import main

sys.exit(main())
