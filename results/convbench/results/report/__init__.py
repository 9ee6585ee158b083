"""Pages: a run or a comparison as HTML, and findings in words."""
