"""The commands of `coe-train`. Each imports the training code it needs, so that help is fast and works without it."""
