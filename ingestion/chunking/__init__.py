"""From a parsed text to passages: by structure first, by size where structure is too coarse."""

from ingestion.chunking.splitting import CHUNKING_VERSION, split

__all__ = ["CHUNKING_VERSION", "split"]
