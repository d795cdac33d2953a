"""Charts of the HTML report: inline SVG that is there without scripts, and the data that a script reads."""
