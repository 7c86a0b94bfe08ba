"""Operations: verification against the sources."""
