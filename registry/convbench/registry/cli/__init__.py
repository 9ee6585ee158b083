"""The command line, and the commands of this room."""
