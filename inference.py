#!/usr/bin/env python3
"""Generate text with the model that train.py trained: python3 inference.py --prompt "In the year" --temperature 0.7

All flags: python3 inference.py --help
"""

from tiny_gpt.bootstrap import ensure_environment

ensure_environment()

if __name__ == "__main__":
    import sys

    from tiny_gpt.cli.generate import inference_script

    sys.exit(inference_script())
