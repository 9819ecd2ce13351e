"""A trained model as files that other tools read. `export.py` has the list of formats and writes the folder."""
