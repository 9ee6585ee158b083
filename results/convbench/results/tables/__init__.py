"""Tables for the terminal, for Markdown and for pages."""
