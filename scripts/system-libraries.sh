#!/bin/sh
# The embedded mongod needs one system library, libcurl4. Install it where that is possible, else say how.
set -eu
[ "$(uname -s)" = Linux ] || exit 0
PATH="$PATH:/usr/sbin:/sbin" # ldconfig is not on every user's path
if ldconfig -p 2>/dev/null | grep -q 'libcurl\.so\.4'; then exit 0; fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq && apt-get install -y -qq --no-install-recommends libcurl4 >/dev/null && exit 0
fi
echo "The embedded MongoDB needs the library libcurl4, and it is not on this system." >&2
echo "Install it:  sudo apt-get install libcurl4     (or set mongo_config.url to a MongoDB of yours)" >&2
exit 1
