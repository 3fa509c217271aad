"""What committed or fresh tables say: the claims' verdicts, tables for the documentation, the HTML page. No torch."""
