"""One session of a run: resume, loop, update, non-finite handling, stop, and what is recorded."""
