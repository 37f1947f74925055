"""Where units come from: the broker, or Postgres itself. Both end in the same claim."""
