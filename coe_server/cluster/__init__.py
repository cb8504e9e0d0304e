"""Several machines: what nodes say of themselves, which are there, and which one answers a request."""
