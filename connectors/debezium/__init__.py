"""Topics of existing Debezium deployments, as sources without a connector of ours."""
