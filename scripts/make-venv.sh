#!/bin/sh
# make-venv.sh PYTHON FOLDER: a virtual environment with pip. Debian keeps what that needs in a package of its own.
set -eu
if "$1" -m venv "$2" 2>/dev/null; then exit 0; fi
rm -rf "$2"
package=$("$1" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "$package" >/dev/null
    exec "$1" -m venv "$2"
fi
echo "Python cannot make a virtual environment here: its package $package is missing." >&2
echo "Install it:  sudo apt-get install $package" >&2
exit 1
