"""`report.html`: one page about a router, from its manifest and its evaluation."""
