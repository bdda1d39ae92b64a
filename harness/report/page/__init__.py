"""report.html: one file, no network, the verdict first. Python gathers, the templates lay out."""
