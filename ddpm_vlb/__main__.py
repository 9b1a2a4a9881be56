r"""`python -m ddpm_vlb`, the same as `ddpm-vlb`."""

import sys

from .cli import main

sys.exit(main())
