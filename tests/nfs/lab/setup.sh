#!/bin/sh
# What the NFS lane needs, on Debian or Ubuntu as root: packages, and a stock kernel that is unpacked, not installed.
# Nothing is started on this machine: no NFS service, no mount. Tried on Debian 12.
set -eu
cache=${SPOOLQ_NFSLAB_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/spoolq-nfslab}
packages="qemu-system-x86 nfs-kernel-server nfs-common rpcbind busybox-static kmod e2fsprogs iproute2 procps zstd xz-utils"
fail() { echo "setup of the NFS lane: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "needs root"
[ "$(uname -m)" = x86_64 ] || fail "made for x86_64, this is $(uname -m)"
command -v apt-get > /dev/null && command -v dpkg > /dev/null \
    || fail "made for Debian and Ubuntu. Elsewhere: install $packages (or what they are called there), and unpack a
kernel with modules for nfs, nfsd, virtio and 9p as $cache/kernel/{boot/vmlinuz-RELEASE,lib/modules/RELEASE}, with
RELEASE written into $cache/kernel/release"
export DEBIAN_FRONTEND=noninteractive
apt() { apt-get -o DPkg::Lock::Timeout=120 -o Acquire::Retries=2 -o Acquire::http::Timeout=30 "$@"; }
made= work=
trap 'if [ -n "$made" ]; then rm -f /usr/sbin/policy-rc.d; fi; if [ -n "$work" ]; then rm -rf "$work"; fi' EXIT
need=
for package in $packages; do
    dpkg -s "$package" 2>/dev/null | grep -q '^Status: install ok installed' || need="$need $package"
done
if [ -n "$need" ] || [ ! -e "$cache/kernel/release" ]; then
    free=$(df --output=avail -m / | tail -n 1)
    [ "$free" -gt 1500 ] || fail "needs 1500 MB on /, where $free are free"
    apt update -qq
fi
if [ -n "$need" ]; then
    if [ ! -e /usr/sbin/policy-rc.d ]; then # keeps package scripts from starting daemons here
        printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; made=1
    fi
    # shellcheck disable=SC2086
    apt install -y -qq --no-install-recommends $need > /dev/null
fi
if [ ! -e "$cache/kernel/release" ]; then
    mkdir -p "$cache"; work=$(mktemp -d "$cache/work.XXXXXX"); chmod 755 "$work"
    meta=linux-image-amd64 # Debian; Ubuntu has the image and two packages of modules
    apt-cache show "$meta" > /dev/null 2>&1 || meta=linux-image-generic
    image=$(apt-cache depends "$meta" | awk '/Depends: linux-image/ {print $2; exit}')
    [ -n "$image" ] || fail "no kernel package found ($meta)"
    wanted=$image
    if [ "$meta" = linux-image-generic ]; then
        release=${image#linux-image-}; release=${release#unsigned-}
        wanted="$image linux-modules-$release linux-modules-extra-$release"
    fi
    # shellcheck disable=SC2086
    (cd "$work" && apt -o APT::Sandbox::User=root download -qq $wanted)
    for file in "$work"/linux-*.deb; do dpkg -x "$file" "$work/kernel"; done
    release=$(ls "$work/kernel/lib/modules")
    for part in sound drivers/gpu drivers/media drivers/infiniband drivers/staging drivers/usb net/wireless; do
        rm -rf "$work/kernel/lib/modules/$release/kernel/$part"
    done
    depmod -b "$work/kernel" "$release"
    echo "$release" > "$work/kernel/release"
    mv "$work/kernel" "$cache/kernel"; rm -rf "$work"; work=
fi
echo "ready: kernel $(cat "$cache/kernel/release") in $cache; now: python -m tests.nfs --short"
