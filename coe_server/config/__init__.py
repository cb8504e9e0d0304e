"""The configuration: files, types of values, environment. No other package reads them."""
