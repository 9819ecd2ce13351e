"""What the user sees of a run: consumers of the trainer's events, reports, and safe terminal output."""
