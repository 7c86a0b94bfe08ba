"""What the sources for Cassandra and Scylla share: the driver's bridge to asyncio, schemas, canonical values."""
