"""report.html: grids, the glossary, templates."""
