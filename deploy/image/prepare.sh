#!/bin/sh
# The user that serves, the folders it may write, and the health check's command. Runs as root while an image is built.
set -eu

getent group 10001 >/dev/null || groupadd --gid 10001 coe
useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/coe --shell /usr/sbin/nologin coe
install -d -o 10001 -g 10001 /var/lib/coe /models
install -d /etc/coe

cat >/usr/local/bin/coe-health <<'CHECK'
#!/opt/coe/bin/python -IS
"""Ends with 0 when GET /readyz of this container's server answers 200."""
import sys
import urllib.request
try:
    urllib.request.urlopen("http://127.0.0.1:8080/readyz", timeout=4)
except OSError as error:
    sys.exit(f"/readyz: {error}")
CHECK
chmod 755 /usr/local/bin/coe-health
