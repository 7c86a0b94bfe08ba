"""What travels between the rooms of ctxpipe: change events, envelopes, context specs, bundles, topic names."""
