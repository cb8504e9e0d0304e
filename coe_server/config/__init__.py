"""The configuration: files, types of values, environment. The only package that reads them."""
