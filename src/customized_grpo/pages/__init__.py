"""Self-contained HTML and Markdown pages."""
