"""One request to an expert and its answer: decided, waited for, passed on, accounted for."""
