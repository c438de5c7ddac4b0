"""Reports to look at: one self-contained HTML file, and pictures of attention."""
