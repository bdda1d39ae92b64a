"""From statements to what a person reads: tables, plots, the HTML page and the other formats."""
