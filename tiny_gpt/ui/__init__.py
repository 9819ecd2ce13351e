"""What people and programs see of a run: consumers of the trainer's events, and text made fit for a terminal."""
