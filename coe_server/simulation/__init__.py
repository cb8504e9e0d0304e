"""The cache under a virtual clock: what a traffic would cost, beside other policies and the offline bound."""
