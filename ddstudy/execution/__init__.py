"""Where fits run: in this process, in threads, or on Ray."""
