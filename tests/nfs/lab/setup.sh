#!/bin/sh
# What the NFS lane needs, on Debian as root: packages, and a stock kernel that is unpacked, not installed.
# Nothing is started on this machine: no NFS service, no mount.
set -eu
cache=${SPOOLQ_NFSLAB_CACHE:-/var/cache/spoolq-nfslab}
export DEBIAN_FRONTEND=noninteractive
need=
for package in qemu-system-x86 nfs-kernel-server nfs-common rpcbind busybox-static kmod e2fsprogs iproute2; do
  dpkg -s "$package" 2>/dev/null | grep -q '^Status: install ok installed' || need="$need $package"
done
if [ -n "$need" ] || [ ! -e "$cache/kernel/release" ]; then apt-get update -qq; fi
if [ -n "$need" ]; then
  made=
  if [ ! -e /usr/sbin/policy-rc.d ]; then # keeps package scripts from starting daemons here
    printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d; chmod 755 /usr/sbin/policy-rc.d; made=1
  fi
  # shellcheck disable=SC2086
  apt-get install -y -qq --no-install-recommends $need > /dev/null
  if [ -n "$made" ]; then rm -f /usr/sbin/policy-rc.d; fi
fi
if [ ! -e "$cache/kernel/release" ]; then
  mkdir -p "$cache"; work=$(mktemp -d "$cache/work.XXXXXX"); chmod 755 "$work"
  package=$(apt-cache depends linux-image-amd64 | awk '/Depends:/ {print $2; exit}')
  (cd "$work" && apt-get download -qq "$package")
  dpkg -x "$work"/linux-image-*.deb "$work/kernel"
  release=$(ls "$work/kernel/lib/modules")
  for part in sound drivers/gpu drivers/media drivers/infiniband drivers/staging drivers/usb net/wireless; do
    rm -rf "$work/kernel/lib/modules/$release/kernel/$part"
  done
  depmod -b "$work/kernel" "$release"
  echo "$release" > "$work/kernel/release"
  mv "$work/kernel" "$cache/kernel"; rm -rf "$work"
fi
echo "ready: kernel $(cat "$cache/kernel/release") in $cache; now: python -m pytest tests/nfs"
