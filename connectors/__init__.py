"""Source → Kafka. Knows nothing of what happens behind Kafka."""
