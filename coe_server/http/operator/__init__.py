"""The operator's side: experts and events, metrics, reloading."""
