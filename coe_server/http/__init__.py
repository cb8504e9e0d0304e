"""The HTTP side: a request is read once, routed, admitted to an expert and relayed."""
