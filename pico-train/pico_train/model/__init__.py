"""The decoder: torch only, no configuration loading, no data, no accelerate, no contract."""
