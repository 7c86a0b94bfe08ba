"""Programs that use the client on the demo's contexts, made to be read and copied."""
