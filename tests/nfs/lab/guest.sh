#!/bin/sh
# pid 1 of a node or of the server, after the initramfs; `lab.KEY=VALUE` of the kernel's command line is $L_KEY here.
PATH=/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin; export PATH
for w in $(cat /proc/cmdline); do
  case $w in lab.*=*) k=${w%%=*}; k=${k#lab.}; eval "L_$k='${w#*=}'";; esac
done
mkdir -p /dev/pts /dev/shm /host/tmp /persist /spool /lib/modules
mount -o bind /tmp /host/tmp
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run; ln -sfn /run /var/run 2>/dev/null
mount -t tmpfs tmpfs /tmp; chmod 1777 /tmp /dev/shm
mkdir -p /run/lock /run/rpc_pipefs
mount -o bind "$L_kernel/lib/modules" /lib/modules
hostname "$L_name"; echo "$L_name" > /etc/hostname
{ echo '127.0.0.1 localhost'; echo "$L_net.2 server"; for i in 1 2 3 4; do echo "$L_net.1$i n$i"; done; } > /etc/hosts
: > /etc/resolv.conf
printf 'passwd: files\ngroup: files\nhosts: files\nnetgroup: files\n' > /etc/nsswitch.conf
id lab 2>/dev/null || echo 'lab:x:1777:1777::/persist:/bin/sh' >> /etc/passwd
ip link set lo up
ip link set eth0 up; ip addr add "$L_ip/24" dev eth0
ip link set eth1 up; ip addr add "$L_cip/24" dev eth1
# the local disk, which survives a power loss
modprobe ext4; modprobe virtio_blk; mount -t ext4 /dev/vda /persist
[ -s /persist/machine-id ] || tr -d - < /proc/sys/kernel/random/uuid > /persist/machine-id
cp /persist/machine-id /etc/machine-id; sync
PYTHONDONTWRITEBYTECODE=1 HOME=/root LANG=C.UTF-8 "$L_py" -I -S "$L_seen/guest_exec.py" < /dev/null > /run/exec.log 2>&1 &
mkdir -p /persist/nfs/sm /persist/nfs/sm.bak /persist/nfs/v4recovery /persist/nfs/nfsdcld
[ -e /persist/nfs/state ] || : > /persist/nfs/state
for f in etab rmtab; do : > /persist/nfs/$f; done
chown -R statd /persist/nfs/sm /persist/nfs/sm.bak /persist/nfs/state 2>/dev/null
mkdir -p /var/lib/nfs; mount -o bind /persist/nfs /var/lib/nfs
mkdir -p /run/rpcbind /var/lib/nfs/rpc_pipefs; chown _rpc /run/rpcbind 2>/dev/null
modprobe sunrpc; mount -t rpc_pipefs rpc_pipefs /run/rpc_pipefs
rpcbind -w 2>/dev/null || rpcbind
modprobe lockd
if [ "$L_name" = server ]; then
  modprobe nfsd
  # version 4 needs an exportable root, which the overlay is not
  mkdir -p /export; mount -t tmpfs -o size=1m tmpfs /export; mkdir /export/spool
  mount -t ext4 /dev/vdb /export/spool; mount -o bind /export/spool /spool
  mount -t nfsd nfsd /proc/fs/nfsd
  printf '%s\n' "/export $L_net.0/24(ro,fsid=0,no_subtree_check)" \
    "/export/spool $L_net.0/24(rw,sync,no_subtree_check,no_root_squash)" > /etc/exports
  for f in nfsv4leasetime nfsv4gracetime; do echo "$L_lease" > /proc/fs/nfsd/$f; done
  nfsdcld
  rpc.statd --no-notify; rpc.mountd --manage-gids; exportfs -ra; rpc.nfsd 8; sm-notify
else
  rpc.statd --no-notify; sm-notify
  modprobe nfs; modprobe nfsv3; modprobe nfsv4
  case $L_vers in 3) from=server:/export/spool;; *) from=server:/spool;; esac
  until mount -t nfs -o "vers=$L_vers" $from /spool 2>> /run/mount.log; do sleep 1; done
fi
touch /run/ready
while :; do wait; sleep 3600 & wait; done
