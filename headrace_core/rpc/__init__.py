"""The gRPC edge that the services share: server, statuses, drain, and protos made of rows."""
