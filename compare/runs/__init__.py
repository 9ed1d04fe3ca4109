"""One run in its own process: starting and watching the process, executing the run, returning its record."""
