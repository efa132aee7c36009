"""Is it the same function? Checks compare a converted model with its source; they know runtimes, not frameworks."""
