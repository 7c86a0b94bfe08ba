"""The only import of faust: record-batch transport, app, thin agents, dead letters."""
