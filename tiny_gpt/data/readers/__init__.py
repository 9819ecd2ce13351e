"""From files to documents, one reader a format."""
