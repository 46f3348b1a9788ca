"""One file per command; each ends with one JSON line on stdout."""
