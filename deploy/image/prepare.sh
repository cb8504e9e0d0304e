#!/bin/sh
# The user that serves and the folders it may write. Runs as root while an image is built.
set -eu

getent group 10001 >/dev/null || groupadd --gid 10001 coe
useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/coe --shell /usr/sbin/nologin coe
install -d -o 10001 -g 10001 -m 0755 /models /hub
install -d -o 10001 -g 10001 -m 0750 /scrape
install -d -o 10001 -g 10001 -m 0700 /var/lib/coe /keys
install -d /etc/coe
