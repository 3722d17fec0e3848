#!/bin/sh
# Writes options of the Docker daemon: the options and the output are those of Go flannel's script of this name.
exec /opt/bin/flanneld docker-opts "$@"
