"""From rows to figures: statistics, significance, standings."""
