"""Cases that decide whether a change of an orchestration flow may land, and the proof that one model beats another."""
