"""Real Kafka, Postgres, Redis and Cassandra on this machine, without Docker."""
