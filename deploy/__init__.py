"""Running ctxpipe: the local stack without Docker and the demo."""
