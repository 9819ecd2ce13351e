"""`python -m tiny_gpt` is `tiny-gpt`."""

import sys

from tiny_gpt.cli.main import main

sys.exit(main())
