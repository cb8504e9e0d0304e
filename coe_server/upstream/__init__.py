"""What is sent to and comes from a server elsewhere: addresses, headers, codings, verdicts. Pure."""
