#!/bin/sh
# Install the system packages that are missing:  setup.sh run|test|image|bench [PYTHON]
# run: what fusefs needs. test, image, bench: what those need besides. Nothing missing: nothing is done.
# Asks for what is used (a program, a header), not for a package, so that others' ways to have it count.
set -eu

group=$1
python=${2:-python3}
missing=

# need PACKAGES COMMAND...: PACKAGES are missing unless COMMAND succeeds.
need() {
    packages=$1
    shift
    "$@" > /dev/null 2>&1 || missing="$missing $packages"
}

c_header() { "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")'; }
nginx_lua() { command -v nginx && test -e /usr/lib/nginx/modules/ngx_http_lua_module.so; }
PATH=$PATH:/usr/sbin:/sbin

case $group in
    run)
        need "python3" command -v "$python"
        # `ensurepip` is what Debian keeps apart: without it no virtual environment gets its pip.
        need "python3-venv" "$python" -c 'import ensurepip, venv'
        need "fuse3" command -v fusermount3
        # pyfuse3 has no wheels: it is compiled here.
        need "libfuse3-dev" pkg-config --exists fuse3
        need "pkg-config" command -v pkg-config
        need "gcc libc6-dev" command -v gcc
        need "python3-dev" c_header
        ;;
    test)
        need "nginx-light libnginx-mod-http-lua" nginx_lua
        need "redis-server" command -v redis-server
        need "runc" command -v runc # runs the containers of a Kubernetes node
        need "openssl" command -v openssl # makes the certificate of the TLS tests
        # The Azure server of the tests runs on Node 18 and later, and is installed by npm.
        need "nodejs" command -v node
        need "npm" command -v npm
        need "fio" command -v fio # verifies what it wrote, through a mount
        ;;
    image)
        need "buildah" command -v buildah
        need "mmdebstrap" command -v mmdebstrap
        need "runc" command -v runc
        ;;
    bench)
        need "s3fs" command -v s3fs
        need "libnginx-mod-stream" test -e /usr/lib/nginx/modules/ngx_stream_module.so
        ;;
    *)
        echo "setup.sh: no group $group; there are run, test, image, bench" >&2
        exit 2
        ;;
esac

if [ -n "$missing" ]; then
    if ! command -v apt-get > /dev/null; then
        echo "setup.sh: please install what Debian calls$missing" >&2
        exit 1
    fi
    echo "installing system packages:$missing"
    as_root=
    [ "$(id -u)" = 0 ] || as_root="sudo"
    apt="env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300"
    # Debian starts a server when it installs one. We want the program, not a web server on port 80.
    policy=/usr/sbin/policy-rc.d
    if [ "$group" = test ] && [ ! -e "$policy" ]; then
        trap '$as_root rm -f "$policy"' EXIT
        trap 'exit 130' INT TERM HUP
        printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" > /dev/null
        $as_root chmod 755 "$policy"
    fi
    $as_root $apt update
    # shellcheck disable=SC2086 # lists of words
    $as_root $apt install --no-install-recommends -y $missing > /dev/null
fi

if [ "$group" = run ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "setup.sh: fusefs needs Python 3.11 or later; say which with make PYTHON=…" >&2
        exit 1
    }
fi
