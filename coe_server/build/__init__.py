"""Parts of the server, built from its settings; `app.py` joins them."""
