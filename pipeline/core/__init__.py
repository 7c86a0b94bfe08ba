"""What every room needs: configuration, the error tree, clock, metrics, logging."""
