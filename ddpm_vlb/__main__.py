r"""`python -m ddpm_vlb`, the same as `ddpm-vlb`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
