"""Ports for servers that are told theirs beforehand, in a configuration file."""

import socket


def free_port(host="127.0.0.1"):
    """One that is given to no other socket while this process lives.

    A socket stays bound to it without listening: the kernel gives the port to no connection and to no other test, but
    lets a server with SO_REUSEADDR listen on it.
    """
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind((host, 0))
        port = holder.getsockname()[1]
        holder.detach()  # it stays open
    return port
