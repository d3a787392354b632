"""The HTTP service: parse, call, convert. Reads the settings; everything below receives values."""
