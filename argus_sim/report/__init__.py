"""What is shown of results: the report's page, its charts, figures, tables in the terminal, and Chrome traces.

report.py        report.html, and the headline table
charts/          the page's charts, drawn as SVG
templates/       the page's HTML, style and script
plots.py         figures for files and notebooks, drawn by Matplotlib
plot_style.py    what all of them look like, and how they become files
policy_style.py  a policy's colour and dashes, the same everywhere
moving.py        timelines as lines: smoothed and thinned
chrome_trace.py  a run as a trace that opens in Perfetto
"""

from argus_sim.report.report import HEADLINE, findings, headline_html, terminal_table, write_report

__all__ = ["HEADLINE", "findings", "headline_html", "terminal_table", "write_report"]
