"""The wire between client and service: schema, error codes and the packing of columns. Nothing else is shared."""
