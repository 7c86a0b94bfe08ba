"""The Cassandra source: a snapshot of our own, and Debezium's commit-log reader as a process beside it."""
