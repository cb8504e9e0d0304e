"""`report.html`: one page about a router, made of its manifest and its evaluation."""
