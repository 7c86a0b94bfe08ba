"""One module per `ctxpipe` command; each exports `command`. Part of the composition root: may import anything."""
