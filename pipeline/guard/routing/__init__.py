"""Which model answers a task, as a file says that is changed by a commit: proved before, watched after, taken back."""
