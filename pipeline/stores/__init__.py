"""Where state lives: protocols, the Redis stores (the only import of redis), the in-memory reference."""
