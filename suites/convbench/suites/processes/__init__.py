"""Worker processes as the parent sees them: start, talk to, supervise."""
