"""Every key of a configuration: type, range, checks across keys, and the hash that names a run."""
