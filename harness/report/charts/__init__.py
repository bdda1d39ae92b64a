"""The figures of a study: drawn once by matplotlib, shown as files (PNG, SVG) and inside the report's page."""
