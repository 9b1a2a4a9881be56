r"""A lossless codec whose files are as long as the variational bound says: `compress` and `decompress`.

`chain.py` has the derivation, `rounding.py` what makes a file readable on another machine, `container.py` its bytes.
"""

from .codec import compress, decompress, decompress_blocks, read_info
from .stack import DamagedFile
from .summary import Summary

__all__ = ["DamagedFile", "Summary", "compress", "decompress", "decompress_blocks", "read_info"]
