"""Start thousands of DES job runs from one manifest, and know what became of every row."""

from typing import Final

__version__: Final = "0.2.0.dev0"
