"""Files to documents: one module per family of formats, all listed in registry.READERS."""
