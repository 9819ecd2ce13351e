"""From what the user names (paths, patterns, datasets, URLs) to files on this disk."""
